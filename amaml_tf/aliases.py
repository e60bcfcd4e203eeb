"""Type aliases that several parts of the library use."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import TypeAlias

import tensorflow as tf

PathLike: TypeAlias = str | os.PathLike[str]

#: A number or a scalar tensor.
Scalar: TypeAlias = float | tf.Tensor

#: A tensor, or tensors nested in tuples, lists and dicts, as Keras models take and return them.
Tensors: TypeAlias = "tf.Tensor | tuple[Tensors, ...] | list[Tensors] | dict[str, Tensors]"

#: A vector for each task, `[B, P]`; or, where those of a large model would be split and joined too
#: often, the list of their parts, tensors `[B, ...]`.
Vectors: TypeAlias = tf.Tensor

#: The result of a model: a tensor, or, with several outputs, tensors nested as in the model.
Outputs: TypeAlias = tf.Tensor

#: A function of (y_true, y_pred).
LossFunction: TypeAlias = Callable[[Tensors, Tensors], tf.Tensor]
