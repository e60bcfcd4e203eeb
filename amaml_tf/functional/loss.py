"""Turns a Keras loss of any form into a function with a scalar value."""

from __future__ import annotations

import copy
from typing import TypeAlias

import keras
import tensorflow as tf

from amaml_tf.aliases import LossFunction
from amaml_tf.errors import UsageError

#: What `compile(loss=...)` takes: a Keras loss, its name, or a function of (y_true, y_pred).
Loss: TypeAlias = keras.losses.Loss | str | LossFunction


def as_loss(loss: Loss, dtype: tf.DType) -> LossFunction:
    """Returns a function of (y_true, y_pred) with a scalar value for a Keras loss of any form.

    A Keras loss object casts its inputs to its own dtype, by default float32. Here it computes in
    `dtype` if that is wider.
    """
    if isinstance(loss, (dict, list, tuple)) or loss is None:
        raise UsageError(
            f"Expected one loss (a keras.losses.Loss, its name, or a function), got {loss!r}. "
            "For several outputs, write a function that adds their losses."
        )
    function = keras.losses.get(loss)
    if isinstance(function, keras.losses.Loss):
        if tf.as_dtype(function.dtype).size < dtype.size:
            function = copy.copy(function)
            # Keras has no public way to change the dtype of a loss.
            function._dtype_policy = keras.DTypePolicy(dtype.name)  # noqa: SLF001
            function._dtype = dtype.name  # noqa: SLF001
        return function
    return lambda y_true, y_pred: tf.reduce_mean(function(y_true, y_pred))
