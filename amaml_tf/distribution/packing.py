"""Results of some tasks as one vector, which the results of the other tasks are added to."""

from __future__ import annotations

from typing import Generic, TypeVar

import tensorflow as tf

P = TypeVar("P", bound="tuple[list[tf.Tensor], object]")


class Packing(Generic[P]):
    """What was computed of the tasks `begin` to `end` of a batch, as one vector.

    The vectors of all tasks add up to that of the batch. Rows stand at their place, between zeros.
    Whole numbers become floats, which are exact up to 2^24.

    Args:
        part: tensors that are summed over tasks, and a structure of tensors with a row for each.
        begin: number of the first task.
        end: number after that of the last task.
        num_tasks: of the batch.

    Attributes:
        dtype: of the vector.
        vector: the vector.
    """

    def __init__(
        self,
        part: P,
        begin: int | tf.Tensor,
        end: int | tf.Tensor,
        num_tasks: int | tf.Tensor,
    ) -> None:
        self._part = part
        sums, rows = part
        placed = [
            tf.pad(each, [[begin, num_tasks - end], *[[0, 0]] * (each.shape.rank - 1)])
            for each in (
                tf.cast(each, tf.int32) if each.dtype.is_bool else each
                for each in tf.nest.flatten(rows)
            )
        ]
        tensors = [*sums, *placed]
        floats = {each.dtype for each in tensors if each.dtype.is_floating}
        self.dtype = tf.float64 if tf.float64 in floats else tf.float32
        self._kinds = [each.dtype for each in tf.nest.flatten(part)]
        self._static = [each.shape for each in tensors]
        self._shapes = [tf.shape(each) for each in tensors]
        self.vector = tf.concat(
            [tf.reshape(tf.cast(each, self.dtype), [-1]) for each in tensors], axis=0
        )

    def unpacked(self, vector: tf.Tensor) -> P:
        """Returns the part of the whole batch, from the sum of the vectors."""
        sizes = [tf.reduce_prod(shape) for shape in self._shapes]
        found = [
            _of_kind(tf.ensure_shape(tf.reshape(flat, shape), static), kind)
            for flat, shape, static, kind in zip(
                tf.split(vector, tf.stack(sizes), num=len(sizes)),
                self._shapes,
                self._static,
                self._kinds,
                strict=True,
            )
        ]
        return tf.nest.pack_sequence_as(self._part, found)


def _of_kind(values: tf.Tensor, kind: tf.DType) -> tf.Tensor:
    return tf.cast(values if kind.is_floating else tf.round(values), kind)
