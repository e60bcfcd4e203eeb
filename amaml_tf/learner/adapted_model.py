"""Makes an ordinary Keras model with the adapted parameters of one task."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence

import keras
import numpy as np
import tensorflow as tf

from amaml_tf.episodes import Examples
from amaml_tf.errors import UsageError
from amaml_tf.functional.model import FunctionalModel, State


def adapted_model(
    function: FunctionalModel, parameters: Sequence[tf.Tensor], state: State, support: Examples
) -> keras.Model:
    """Returns a copy of the function's model with these values, not compiled.

    Args:
        function: the model to copy.
        parameters: values of its trainable variables.
        state: values of its non-trainable variables.
        support: examples; batch normalization stores their statistics.

    Raises:
        UsageError: if the model cannot be copied from its configuration.
    """
    model = function.model
    values = dict(zip(map(id, model.trainable_variables), parameters, strict=True))
    others = function.statistics_of(parameters, state, support)
    values |= dict(zip(map(id, model.non_trainable_variables), others, strict=True))
    copy = _copy_of(model)
    _copy_states(model, copy)
    for target, source in zip(copy.variables, model.variables, strict=True):
        target.assign(values[id(source)])
    return copy


def _copy_states(source: keras.Model, target: keras.Model) -> None:
    """Copies what layers hold beside their configuration, as Keras's saving does.

    An adapted `Normalization` layer, for example, computes constants from its variables, and
    `StringLookup` has a vocabulary.
    """
    layers = (model._flatten_layers(include_self=False) for model in (source, target))  # noqa: SLF001
    for one, other in zip(*layers, strict=True):
        store: dict[str, np.ndarray] = {}
        one.save_own_variables(store)
        other.load_own_variables(store)
        if hasattr(one, "save_assets"):
            with tempfile.TemporaryDirectory() as folder:
                one.save_assets(folder)
                other.load_assets(folder)


def _copy_of(model: keras.Model) -> keras.Model:
    try:
        copy = keras.models.clone_model(model)
    except (ValueError, TypeError, NotImplementedError) as error:
        first = f"{error}".split(". ")[0].splitlines()[0]
        raise UsageError(
            f"Expected a model that can be copied from its configuration, but {model.name!r} "
            f"cannot ({first}); build it from keras.Input, or give it get_config and an __init__ "
            "that takes what it returns."
        ) from error
    if not copy.built:
        copy.build(model.input_shape)
    return copy
