"""The structure of a batch of episodes, and checks of it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeAlias, TypeVar

import tensorflow as tf

from amaml_tf.aliases import Tensors
from amaml_tf.errors import UsageError

T = TypeVar("T")

#: The examples of a task: (x, y), or (x, y, weight) with weights as Keras's `sample_weight`.
Examples: TypeAlias = Sequence[Tensors]

#: `((support_x, support_y), (query_x, query_y))` of one task, or of a batch of tasks, in which
#: every array has the task axis first. Both sets may have weights, as a third entry.
Episodes: TypeAlias = tuple[Examples, Examples]


def as_tensors(values: T) -> T:
    """Returns arrays, or a structure of arrays, as tensors.

    Raises:
        UsageError: one is ragged or sparse.
    """
    _refuse_composites(values)
    converted: T = tf.nest.map_structure(tf.convert_to_tensor, values)
    return converted


def episodes_of(data: Sequence[Any]) -> Episodes:
    """Returns the batch of episodes in what Keras gives to a step, checked.

    Keras makes a tuple of the arguments x, y and sample_weight of `fit` and `train_on_batch`, with
    None for the last ones if they are not given: `(support, query)` or `((support, query),)`.

    Raises:
        UsageError: it is none, see `check_episodes`.
    """
    if isinstance(data, (tuple, list)):
        while data and data[-1] is None:
            data = data[:-1]
        data = data[0] if len(data) == 1 else data
    check_episodes(data)  # type: ignore[arg-type]
    return data  # type: ignore[return-value]


def check_episodes(data: Episodes) -> None:
    """Raises UsageError unless `data` is a batch of episodes, with one size on each common axis."""
    _refuse_composites(data)
    try:
        support, query = data
        fine = all(len(examples) in (2, 3) for examples in (support, query))
    except (TypeError, ValueError):
        fine = False
    if not fine:
        raise UsageError(
            "Expected batches of episodes ((support_x, support_y), (query_x, query_y)), or with "
            "weights ((support_x, support_y, support_weight), (query_x, query_y, query_weight)), "
            "every array with the task axis first; got "
            f"{tf.nest.map_structure(lambda value: type(value).__name__, data)}."
        )
    sizes = {array.shape[0] for array in tf.nest.flatten(data)} - {None}
    if len(sizes) > 1:
        raise UsageError(
            "Expected all arrays of a batch of episodes to have the same number of tasks on "
            f"their first axis, got {sorted(map(str, sizes))}."
        )
    for name, examples in (("support", support), ("query", query)):
        check_examples(examples, name, axis=1)


def _refuse_composites(values: object) -> None:
    for each in tf.nest.flatten(values):
        if isinstance(each, (tf.RaggedTensor, tf.SparseTensor)):
            raise UsageError(
                f"Expected dense tensors, got a {type(each).__name__}; pad it (to_tensor of a "
                "ragged one, with weights of 0 for the examples that are not there), or use "
                "tf.sparse.to_dense."
            )


def check_examples(examples: Examples, name: str = "support", axis: int = 0) -> None:
    """Raises UsageError unless x, y and weights have the same number of examples.

    Args:
        examples: (x, y) or (x, y, weight).
        name: of the set, for the message.
        axis: the axis of the examples: 0, or 1 behind a task axis.
    """
    if not isinstance(examples, Sequence) or len(examples) not in (2, 3):
        raise UsageError(
            f"Expected the {name} set as (x, y) or (x, y, weight), got "
            f"{tf.nest.map_structure(lambda value: type(value).__name__, examples)}."
        )
    sizes: set[tuple[int, str]] = set()
    for part, values in zip(("x", "y", "weight"), examples, strict=False):
        for array in tf.nest.flatten(values):
            if array.shape.rank is not None and array.shape.rank <= axis:
                raise UsageError(
                    f"Expected {name}_{part} with the examples on axis {axis}, got the shape "
                    f"{tuple(array.shape)}; give it one entry for each example."
                )
            if array.shape.rank is not None and array.shape[axis] is not None:
                sizes.add((array.shape[axis], f"{name}_{part}"))
    if len({size for size, _ in sizes}) > 1:
        found = ", ".join(f"{size} of {part}" for size, part in sorted(sizes))
        raise UsageError(
            f"Expected the same number of examples in all arrays of the {name} set, got {found}; "
            "give a target (and a weight, if there are weights) for every input."
        )


def number_of_tasks(episodes: Episodes | Examples) -> int | tf.Tensor:
    """Returns the size of the task axis: a number, or a tensor if only the run will know it."""
    first = tf.nest.flatten(episodes)[0]
    size = first.shape[0]
    return tf.shape(first)[0] if size is None else size
