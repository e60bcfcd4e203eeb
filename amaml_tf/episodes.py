"""The structure of a batch of episodes, and checks of it."""

from __future__ import annotations

from typing import TypeAlias

import tensorflow as tf

from amaml_tf.aliases import Tensors
from amaml_tf.errors import UsageError

#: Inputs and targets (x, y) of a set of examples.
Examples: TypeAlias = tuple[Tensors, Tensors]

#: `((support_x, support_y), (query_x, query_y))` of one task, or of a batch of tasks, in which
#: every array has the task axis first.
Episodes: TypeAlias = tuple[Examples, Examples]


def check_episodes(data: Episodes) -> None:
    """Raises UsageError unless `data` is a batch of episodes with an equal number of tasks."""
    try:
        (_, _), (_, _) = data
    except (TypeError, ValueError) as error:
        raise UsageError(
            "Expected batches of episodes ((support_x, support_y), (query_x, query_y)), every "
            f"array with the task axis first; got {tf.nest.map_structure(type, data)}."
        ) from error
    sizes = {array.shape[0] for array in tf.nest.flatten(data)}
    if len(sizes) != 1:
        raise UsageError(
            "Expected all arrays of a batch of episodes to have the same number of tasks on "
            f"their first axis, got {sorted(map(str, sizes))}."
        )


def number_of_tasks(episodes: Episodes | Examples) -> int | tf.Tensor:
    """Returns the size of the task axis: a number, or a tensor if only the run will know it."""
    first = tf.nest.flatten(episodes)[0]
    size = first.shape[0]
    return tf.shape(first)[0] if size is None else size


def without_task_axis(values: Tensors) -> Tensors:
    """Returns `values` with the examples of all tasks on one axis."""
    return tf.nest.map_structure(
        lambda v: tf.reshape(v, tf.concat([[-1], tf.shape(v)[2:]], axis=0)), values
    )
