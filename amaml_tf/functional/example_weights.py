"""Weights of examples: an example of weight 0 counts nowhere, whatever stands in its place.

An example that does not count may hold anything, NaN too, and no product with 0 removes NaN. So a
copy of an example that counts takes its place before anything is computed.
"""

from __future__ import annotations

import tensorflow as tf

from amaml_tf.aliases import Tensors
from amaml_tf.episodes import Examples


def counts(weight: Tensors) -> tf.Tensor:
    """Returns which of n examples count, bool `[n]`: those with a weight that is not 0.

    Args:
        weight: `[n]` or `[n, ...]` (a weight for each step of a sequence, for example), or a
            structure of these, one for each output of a model.
    """
    parts = [_by_rows(each != 0, 1) for each in tf.nest.flatten(weight)]
    return tf.reduce_any(tf.stack(parts), axis=0)


def filled(values: Tensors, chosen: tf.Tensor) -> Tensors:
    """Returns `values`, with a copy of the first chosen entry in place of all that are not chosen.

    If none is chosen, all become 0.

    Args:
        values: a tensor, or a structure of tensors.
        chosen: bool; its axes are the first axes of each tensor.
    """
    return tf.nest.map_structure(lambda each: _filled(each, chosen), values)


def blanked(outputs: Tensors, chosen: tf.Tensor) -> Tensors:
    """Returns the outputs of a model, NaN for the examples that are not chosen."""

    def one(output: tf.Tensor) -> tf.Tensor:
        nothing = float("nan") if output.dtype.is_floating else tf.zeros([], output.dtype)
        return tf.where(_to_rank(chosen, output.shape.rank), output, nothing)

    return tf.nest.map_structure(one, outputs)


def nan_if_none_counts(loss: tf.Tensor, weight: Tensors) -> tf.Tensor:
    """Returns the loss of one task, NaN (its derivatives too) if no example of the task counts.

    A sum over nothing would be 0: a perfect task in every mean over tasks.
    """
    fine = tf.reduce_any(counts(weight))
    return loss * tf.where(fine, tf.ones([], loss.dtype), float("nan"))


def counting_inputs(examples: Examples) -> tuple[Tensors, tf.Tensor | None]:
    """Returns the inputs of one task, and which examples count (None: all)."""
    x, _, *weight = examples
    if not weight:
        return x, None
    chosen = counts(weight)
    return filled(x, chosen), chosen


def _filled(values: tf.Tensor, chosen: tf.Tensor) -> tf.Tensor:
    chosen = _by_rows(chosen, values.shape.rank)
    rank = chosen.shape.rank
    size = tf.shape(values)
    entries = tf.reshape(values, tf.concat([[-1], size[rank:]], axis=0))
    of_entry = tf.reshape(tf.broadcast_to(chosen, size[:rank]), [-1])
    first = tf.gather(entries, tf.argmax(of_entry))
    safe = tf.where(tf.reduce_any(of_entry), first, tf.zeros_like(first))
    return tf.where(_to_rank(chosen, values.shape.rank), values, safe)


def _by_rows(chosen: tf.Tensor, rank: int) -> tf.Tensor:
    """Returns `chosen` with at most `rank` axes: true where any entry of the others is."""
    return tf.reduce_any(chosen, axis=list(range(rank, chosen.shape.rank)))


def _to_rank(chosen: tf.Tensor, rank: int) -> tf.Tensor:
    size = tf.concat([tf.shape(chosen), [1] * (rank - chosen.shape.rank)], axis=0)
    return tf.reshape(chosen, size)
