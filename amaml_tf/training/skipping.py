"""Episodes that are left out of a stream because they make a run fail."""

from __future__ import annotations

from collections.abc import Collection

import tensorflow as tf

from amaml_tf.episodes import Episodes
from amaml_tf.errors import UsageError


def skipping(
    episodes: tf.data.Dataset, skipped: Collection[int], batch_size: int, start: int
) -> tf.data.Dataset:
    """Returns the stream with another episode of the same batch in place of each skipped one.

    All other episodes keep their numbers, and the batches their size.

    Args:
        episodes: batches of episodes.
        skipped: numbers of episodes, from 0 at the first batch of the whole stream.
        batch_size: tasks in a batch.
        start: number of the first batch of `episodes`.

    Raises:
        UsageError: all episodes of a batch are to be skipped.
    """
    if not skipped:
        return episodes
    whole = _whole_batches(skipped, batch_size)
    if whole:
        raise UsageError(
            f"Expected one episode to be left in every batch of {batch_size}, got all of meta-step "
            f"{whole[0] + 1} to skip; skip fewer."
        )
    unwanted = tf.constant(sorted(skipped), tf.int64)

    @tf.autograph.experimental.do_not_convert
    def replaced(number: tf.Tensor, batch: Episodes) -> Episodes:
        numbers = number * batch_size + tf.range(batch_size, dtype=tf.int64)
        is_unwanted = tf.reduce_any(numbers[:, tf.newaxis] == unwanted, axis=1)
        wanted = tf.argmin(tf.cast(is_unwanted, tf.int32))
        chosen = tf.where(is_unwanted, wanted, tf.range(batch_size, dtype=tf.int64))
        return tf.nest.map_structure(
            lambda v: tf.ensure_shape(tf.gather(v, chosen), v.shape), batch
        )

    return episodes.enumerate(start).map(replaced)


def _whole_batches(skipped: Collection[int], batch_size: int) -> list[int]:
    """Returns the numbers of the batches all of whose episodes are skipped."""
    batches = [number // batch_size for number in set(skipped)]
    return sorted(n for n in set(batches) if batches.count(n) == batch_size)
