"""Parts of a batch of tasks: solved one after another or side by side, and joined to the whole."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

import tensorflow as tf

from amaml_tf.algorithms.base import MetaDiagnostics, MetaGradients
from amaml_tf.aliases import Outputs
from amaml_tf.distribution import Replicas
from amaml_tf.episodes import number_of_tasks
from amaml_tf.errors import UsageError
from amaml_tf.functional.mapping import map_tasks
from amaml_tf.solvers.diagnostics import AdjointDiagnostics, Diagnostics


class Part(NamedTuple):
    """What is computed of some tasks of a batch.

    Attributes:
        sums: tensors that are summed over the tasks.
        rows: a structure of tensors with a row for each task.
    """

    sums: list[tf.Tensor]
    rows: Any


V = TypeVar("V")
#: A structure of arrays with the task axis first.
T = TypeVar("T")


class MetaStep(NamedTuple):
    """A meta-gradient, with query losses `[B]` and outputs of the initialization itself."""

    result: MetaGradients
    before: Any

    def part(self) -> Part:
        """Returns what can be joined to other tasks of the same meta-batch."""
        result, before = self
        forward, backward, num_dropped = result.diagnostics
        number = tf.cast(tf.size(result.losses) - num_dropped, result.losses.dtype)
        means = [result.loss, *result.gradients, *result.algorithm_gradients]
        rows = _Rows(result.losses, result.outputs, before, forward, backward or ())
        return Part([number, *(number * mean for mean in means)], rows)

    @classmethod
    def of(cls, part: Part, num_gradients: int) -> MetaStep:
        """Returns the meta-step of a whole meta-batch.

        Args:
            part: of all of its tasks.
            num_gradients: how many of the gradients are of the model's variables.
        """
        number, *sums = part.sums
        loss, *gradients = [each / tf.maximum(number, 1) for each in sums]
        rows = part.rows
        num_dropped = tf.size(rows.losses) - tf.cast(number, tf.int32)
        result = MetaGradients(
            loss=loss,
            gradients=gradients[:num_gradients],
            algorithm_gradients=gradients[num_gradients:],
            losses=rows.losses,
            outputs=rows.outputs,
            diagnostics=MetaDiagnostics(rows.forward, rows.backward or None, num_dropped),
        )
        return cls(result, rows.before)


class _Rows(NamedTuple):
    """What a meta-step has for each task; `backward` is empty for algorithms without an adjoint."""

    losses: tf.Tensor
    outputs: Outputs
    before: Any
    forward: Diagnostics
    backward: AdjointDiagnostics | tuple[()]


class Split:
    """How a batch of tasks is split into parts.

    Args:
        tasks_per_step: the largest number of tasks that a replica solves at a time; None: all.
        replicas: among which the tasks are divided; None: this device alone.

    Raises:
        UsageError: `tasks_per_step` is not above 0.
    """

    def __init__(self, tasks_per_step: int | None, replicas: Replicas | None = None) -> None:
        if tasks_per_step is not None and tasks_per_step < 1:
            raise UsageError(
                f"Expected tasks_per_step to be 1 or more, got {tasks_per_step}; pass a number of "
                "tasks, or None for all at once."
            )
        self._size = tasks_per_step
        self._replicas = replicas

    def among(self, replicas: Replicas | None) -> Split:
        """Returns the same split, with the tasks divided among `replicas`."""
        return Split(self._size, replicas)

    @property
    def is_whole(self) -> bool:
        """Whether all tasks are solved at once."""
        return self._size is None and self._replicas is None

    def __call__(self, program: Callable[[V, T], Part], values: V, tasks: T) -> Part:
        """Returns the part of all tasks.

        Args:
            program: computes a part from `values` and some of the `tasks`.
            values: what all tasks share.
            tasks: a structure of arrays with the task axis first.
        """

        def of_some(values: V, tasks: T) -> Part:
            found = functools.partial(program, values)
            return found(tasks) if self._size is None else in_pieces(found, tasks, self._size)

        if self._replicas is None:
            return of_some(values, tasks)
        number = number_of_tasks(tf.nest.flatten(tasks))
        return self._replicas(of_some, values, tasks, number)


def cut(tasks: T, begin: int | tf.Tensor, end: int | tf.Tensor) -> T:
    """Returns the tasks `begin` to `end` (without it) of a structure with the task axis first."""
    return tf.nest.map_structure(lambda each: each[begin:end], tasks)


def in_pieces(program: Callable[[T], Part], tasks: T, size: int) -> Part:
    """Computes of at most `size` tasks at a time, and returns the part of all tasks.

    A piece begins when the one before it has ended: the memory is that of one piece.

    Args:
        program: computes a piece.
        tasks: a structure of arrays with the task axis first.
        size: tasks of a piece, >= 1; the last piece may have fewer.
    """
    number = number_of_tasks(tf.nest.flatten(tasks))
    if not isinstance(number, int):
        return _in_unknown_pieces(program, tasks, size, number)
    whole = program(cut(tasks, 0, size))
    for begin in range(size, number, size):
        with tf.control_dependencies(tf.nest.flatten(whole)):
            whole = joined(whole, program(cut(tasks, begin, min(begin + size, number))))
    return whole


def _in_unknown_pieces(
    program: Callable[[T], Part], tasks: T, size: int, number: tf.Tensor
) -> Part:
    """`in_pieces` for a number of tasks that only the run knows."""

    def add(begin: tf.Tensor, whole: Part) -> tuple[tf.Tensor, Part]:
        piece = cut(tasks, begin, tf.minimum(begin + size, number))
        return begin + size, joined(whole, program(piece))

    first = program(cut(tasks, 0, tf.minimum(size, number)))
    rows = tf.nest.map_structure(lambda each: tf.TensorShape([None, *each.shape[1:]]), first.rows)
    shapes = Part([each.shape for each in first.sums], rows)
    _, whole = tf.while_loop(
        lambda begin, _: begin < number,
        add,
        (tf.constant(size), first),
        shape_invariants=(tf.TensorShape([]), shapes),
        parallel_iterations=1,
    )
    return whole


def side_by_side(program: Callable[[tuple[Any, ...]], Part], tasks: tuple[Any, ...]) -> Part:
    """Computes every task by itself, several at a time, and returns the part of all tasks.

    Args:
        program: computes the part of one task.
        tasks: a structure of arrays with the task axis first.
    """

    def one(task: tuple[Any, ...]) -> Part:
        part = program(tf.nest.map_structure(lambda each: tf.expand_dims(each, 0), task))
        return Part(part.sums, tf.nest.map_structure(lambda each: tf.squeeze(each, 0), part.rows))

    part = map_tasks(one, tasks, vectorize=False)
    return Part([tf.reduce_sum(each, axis=0) for each in part.sums], part.rows)


def joined(one: Part, other: Part) -> Part:
    """Returns the part of the tasks of both."""
    sums = [some + others for some, others in zip(one.sums, other.sums, strict=True)]
    rows = tf.nest.map_structure(lambda *each: tf.concat(each, axis=0), one.rows, other.rows)
    return Part(sums, rows)
