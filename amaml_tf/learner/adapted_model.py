"""Makes an ordinary Keras model with the adapted parameters of one task."""

from __future__ import annotations

from collections.abc import Sequence

import keras
import tensorflow as tf

from amaml_tf.aliases import Tensors
from amaml_tf.errors import UsageError
from amaml_tf.functional.model import FunctionalModel, State


def adapted_model(
    function: FunctionalModel, parameters: Sequence[tf.Tensor], state: State, x: Tensors
) -> keras.Model:
    """Returns a copy of the function's model with these values, not compiled.

    Args:
        function: the model to copy.
        parameters: values of its trainable variables.
        state: values of its non-trainable variables.
        x: inputs; batch normalization stores their statistics.

    Raises:
        UsageError: if the model cannot be copied from its configuration.
    """
    model = function.model
    values = dict(zip(map(id, model.trainable_variables), parameters, strict=True))
    others = function.statistics_of(parameters, state, x)
    values |= dict(zip(map(id, model.non_trainable_variables), others, strict=True))
    copy = _copy_of(model)
    for target, source in zip(copy.variables, model.variables, strict=True):
        target.assign(values[id(source)])
    return copy


def _copy_of(model: keras.Model) -> keras.Model:
    try:
        copy = keras.models.clone_model(model)
    except (ValueError, TypeError, NotImplementedError) as error:
        raise UsageError(
            f"Expected a model that can be copied from its configuration, but {model.name!r} "
            f"cannot: {error} Build it from keras.Input, or give it get_config and from_config."
        ) from error
    if not copy.built:
        copy.build(model.input_shape)
    return copy
