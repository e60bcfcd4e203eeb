"""The values of the variables that the programs of a learner read, as their arguments."""

from __future__ import annotations

from typing import NamedTuple

import keras
import tensorflow as tf

from amaml_tf.algorithms.base import Algorithm
from amaml_tf.functional.model import FunctionalModel, State


class Values(NamedTuple):
    """The values of all variables that the programs read.

    Attributes:
        trainable: of the model's trainable variables.
        own: of the algorithm's variables.
        state: of the model's other variables.
    """

    trainable: list[tf.Tensor]
    own: list[tf.Tensor]
    state: State

    @classmethod
    def of(cls, function: FunctionalModel, algorithm: Algorithm) -> Values:
        """Returns the current values."""
        own = [tf.convert_to_tensor(variable) for variable in algorithm.variables]
        return cls(function.parameters(), own, function.state())

    def held_by(self, model: keras.Model, algorithm: Algorithm) -> keras.StatelessScope:
        """Returns a context in which the variables have these values.

        A program that is traced inside reads no variable: it can run on another device than theirs.
        """
        variables = [
            *model.trainable_variables,
            *algorithm.variables,
            *model.non_trainable_variables,
        ]
        values = [*self.trainable, *self.own, *self.state]
        return keras.StatelessScope(list(zip(variables, values, strict=True)))
