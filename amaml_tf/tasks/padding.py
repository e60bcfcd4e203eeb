"""Episodes of different sizes in one batch: padded to one size, with weights of examples.

An example of weight 0 only fills its place: it counts in no loss, gradient, statistic or metric.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

import tensorflow as tf

from amaml_tf.aliases import Tensors

T = TypeVar("T")

#: Sizes that a batch's largest size is rounded up to, so that few programs are compiled.
BUCKETS = tuple(2**power for power in range(31))


def first_count(count: tf.Tensor, size: int, dtype: str) -> tf.Tensor:
    """Returns the weights of `size` examples of which the first `count` count, `[size]`.

    Args:
        count: an integer, of shape [].
        size: number of examples.
        dtype: of the weights.
    """
    return tf.cast(tf.range(size) < tf.cast(count, tf.int32), dtype)


def weighted(
    examples: tuple[tf.Tensor, tf.Tensor], weight: tf.Tensor
) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """Returns (x, y, weight), with zeros in place of the examples of weight 0.

    Args:
        examples: x and y, arrays of shape [examples, ...].
        weight: of shape [examples].
    """

    def counting(values: tf.Tensor) -> tf.Tensor:
        counts = tf.reshape(weight != 0, [-1] + [1] * (len(values.shape) - 1))
        return tf.where(counts, values, tf.zeros_like(values))

    x, y = examples
    return counting(x), counting(y), weight


def padded_batches(
    tasks: tf.data.Dataset, batch_size: int, shapes: Sequence[tf.TensorShape], values: Sequence[T]
) -> tf.data.Dataset:
    """Returns batches of tasks whose arrays are padded at their ends.

    Args:
        tasks: elements of one task each.
        batch_size: tasks in a batch; an incomplete last batch is left out.
        shapes: what the arrays of a task are padded to, in the order of `tf.nest.flatten`. Where an
            axis is None, it is the largest of the batch, rounded up to one of `BUCKETS`.
        values: what each array is padded with, of its dtype.
    """
    spec = tasks.element_spec
    batches = tasks.padded_batch(
        batch_size,
        padded_shapes=tf.nest.pack_sequence_as(spec, list(shapes)),
        padding_values=tf.nest.pack_sequence_as(spec, list(values)),
        drop_remainder=True,
    )

    @tf.autograph.experimental.do_not_convert
    def to_buckets(*batch: Tensors) -> Tensors:
        padded = [
            _to_buckets(array, shape, value)
            for array, shape, value in zip(tf.nest.flatten(batch), shapes, values, strict=True)
        ]
        return tf.nest.pack_sequence_as(batch, padded)

    if all(shape.is_fully_defined() for shape in shapes):
        return batches
    return batches.map(to_buckets, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True)


def _to_buckets(batch: tf.Tensor, shape: tf.TensorShape, value: T) -> tf.Tensor:
    """Returns an array with a task axis, padded where `shape`, without that axis, is None."""
    sizes = tf.shape(batch)
    buckets = tf.constant(BUCKETS)
    wanted = tf.gather(buckets, tf.searchsorted(buckets, sizes))
    grows = tf.constant([False, *(size is None for size in shape)])
    ends = tf.where(grows, wanted - sizes, 0)
    padded = tf.pad(batch, tf.stack([tf.zeros_like(ends), ends], axis=1), constant_values=value)
    return tf.ensure_shape(padded, batch.shape)
