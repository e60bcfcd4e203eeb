"""Turns the parameters of a model into one vector, the state of an ODE, and back."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import tensorflow as tf

from amaml_tf.errors import UsageError


class Layout(NamedTuple):
    """The positions of the tensors of a list in one flat vector.

    Attributes:
        shapes: the static shape of every tensor, in order.
    """

    shapes: tuple[tuple[int, ...], ...]

    @classmethod
    def of(cls, variables: Sequence[tf.Tensor]) -> Layout:
        """Returns the layout of `variables`, whose shapes must be static."""
        return cls(tuple(tuple(int(n) for n in variable.shape) for variable in variables))

    @property
    def sizes(self) -> list[int]:
        """Number of entries of each tensor."""
        return [math.prod(shape) for shape in self.shapes]

    @property
    def size(self) -> int:
        """Number of entries of the flat vector."""
        return sum(self.sizes)

    def ravel(self, tensors: Sequence[tf.Tensor], batch_ndims: int = 0) -> tf.Tensor:
        """Joins `tensors` of the shapes `batch + shapes[i]` into one of shape `batch + [size]`."""
        if not tensors:
            raise UsageError("Expected at least one tensor to ravel, got none.")
        rows = []
        for tensor, size in zip(tensors, self.sizes, strict=True):
            tensor = tf.convert_to_tensor(tensor)
            rows.append(_reshaped(tensor, batch_ndims, (size,)))
        return tf.concat(rows, axis=-1)

    def unravel(self, vector: tf.Tensor) -> list[tf.Tensor]:
        """Splits `vector`, of shape `batch + [size]`, into tensors of shape `batch + shapes[i]`."""
        parts = tf.split(vector, self.sizes, axis=-1)
        return [
            _reshaped(part, vector.shape.rank - 1, shape)
            for part, shape in zip(parts, self.shapes, strict=True)
        ]


def _reshaped(tensor: tf.Tensor, batch_ndims: int, shape: tuple[int, ...]) -> tf.Tensor:
    """Returns `tensor` in the shape `batch + shape`, where `batch` has `batch_ndims` dimensions."""
    batch = tensor.shape[:batch_ndims]
    if batch.is_fully_defined():  # a large model has hundreds of tensors: no operations for shapes
        return tf.reshape(tensor, [*batch, *shape])
    sizes = tf.concat([tf.shape(tensor)[:batch_ndims], tf.constant(shape, tf.int32)], 0)
    return tf.ensure_shape(tf.reshape(tensor, sizes), batch.concatenate(shape))
