"""The trainable parameters of a Keras model as two vectors: the adapted ones and the held ones."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, TypeVar

import keras
import tensorflow as tf

from amaml_tf.aliases import Vectors
from amaml_tf.errors import UsageError
from amaml_tf.functional.checks import refuse_constraints
from amaml_tf.vectors import Layout

T = TypeVar("T")


class Parameters(NamedTuple):
    """The trainable parameters of B tasks: `[B, P]` adapted ones, `[B, Q]` held ones."""

    adapted: tf.Tensor
    held: tf.Tensor


class ParameterVectors:
    """The parameters of a task as two vectors.

    They are `adapted`, the state of the gradient flow, and `held`, the trainable parameters that
    adaptation does not change (often none).

    Args:
        model: a built Keras model.
        adapted: for every trainable variable, whether adaptation changes it; None: all.

    Raises:
        UsageError: if no variable is adapted, or an adapted one has a constraint.
    """

    def __init__(self, model: keras.Model, adapted: Sequence[bool] | None) -> None:
        self.model = model
        variables = model.trainable_variables
        self.adapted = tuple(adapted) if adapted is not None else (True,) * len(variables)
        if len(self.adapted) != len(variables) or not any(self.adapted):
            raise UsageError(
                f"Expected `adapted` to mark at least one of the {len(variables)} trainable "
                f"variables of the model, got {adapted}."
            )
        chosen, rest = self.split(variables)
        refuse_constraints(chosen)
        self.layout, self.held_layout = self._layouts = Layout.of(chosen), Layout.of(rest)

    @property
    def dtype(self) -> tf.DType:
        """The dtype of the parameter vectors."""
        return tf.as_dtype(self.model.trainable_variables[0].dtype)

    def split(self, values: Sequence[T]) -> tuple[list[T], list[T]]:
        """Splits a list aligned with the trainable variables into adapted and held ones."""
        pairs = list(zip(values, self.adapted, strict=True))
        return [v for v, chosen in pairs if chosen], [v for v, chosen in pairs if not chosen]

    def merge(self, chosen: Sequence[T], rest: Sequence[T]) -> list[T]:
        """Undoes `split`."""
        one, other = iter(chosen), iter(rest)
        return [next(one) if adapted else next(other) for adapted in self.adapted]

    def ravel(
        self, parameters: Sequence[tf.Tensor], batch_ndims: int = 0
    ) -> tuple[tf.Tensor, tf.Tensor]:
        """Returns the vectors (adapted, held) of a list aligned with the trainable variables."""
        chosen, rest = self.split(parameters)
        adapted = self.layout.ravel(chosen, batch_ndims)
        held = self.held_layout.ravel(rest, batch_ndims) if rest else adapted[..., :0]
        return adapted, held

    def unravel(self, adapted: Vectors, held: Vectors) -> list[tf.Tensor]:
        """Undoes `ravel`, for vectors with any leading dimensions, or for lists of tensors."""
        chosen, rest = (
            layout.unravel(part) if tf.is_tensor(part) and layout.shapes else part
            for layout, part in zip(self._layouts, (adapted, held), strict=True)
        )
        return self.merge(chosen, rest if self.held_layout.shapes else [])

    def initialization(self, num_tasks: int) -> Parameters:
        """Returns the model's own trainable parameters, the same for `num_tasks` tasks."""
        vectors = self.ravel(self.parameters())
        return Parameters(*(for_every_task(vector, num_tasks) for vector in vectors))

    def parameters(self) -> list[tf.Tensor]:
        """Returns the values of the trainable variables.

        Raises:
            UsageError: other variables are trainable by now.
        """
        variables = self.model.trainable_variables
        if len(variables) != len(self.adapted):
            raise UsageError(
                f"Expected {self.model.name!r} to have {len(self.adapted)} trainable variables, as "
                f"when it was compiled, got {len(variables)}; call compile again after layers were "
                "added, frozen or thawed."
            )
        return [tf.convert_to_tensor(v) for v in variables]


def for_every_task(vector: tf.Tensor, num_tasks: int) -> tf.Tensor:
    """Returns `vector` `[P]` repeated for every task, `[B, P]`."""
    return tf.tile(vector[tf.newaxis], [num_tasks, 1])


def is_noise(variable: keras.Variable) -> bool:
    """Returns whether a non-trainable variable is the seed of a layer's random numbers."""
    return variable.path.endswith("seed_generator_state")
