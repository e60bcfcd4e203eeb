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
            rows.append(tf.reshape(tensor, tf.concat([tf.shape(tensor)[:batch_ndims], [size]], 0)))
        return tf.concat(rows, axis=-1)

    def unravel(self, vector: tf.Tensor) -> list[tf.Tensor]:
        """Splits `vector`, of shape `batch + [size]`, into tensors of shape `batch + shapes[i]`."""
        batch_shape = tf.shape(vector)[:-1]
        static_batch = vector.shape[:-1]
        tensors = []
        for part, shape in zip(tf.split(vector, self.sizes, axis=-1), self.shapes, strict=True):
            tensor = tf.reshape(part, tf.concat([batch_shape, tf.constant(shape, tf.int32)], 0))
            tensors.append(tf.ensure_shape(tensor, static_batch.concatenate(shape)))
        return tensors
