"""What is computed of a batch of tasks with given values of the variables.

A batch is one program, or every task has its whole inner run to itself (`Execution.separate`), and
several tasks run side by side: no task waits for another one after each of its steps, and what a
run keeps is not copied from step to step.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import tensorflow as tf

from amaml_tf.algorithms.base import Algorithm, MetaGradients
from amaml_tf.episodes import Episodes, Examples, number_of_tasks
from amaml_tf.flow.buffers import ASSUMED_TASKS
from amaml_tf.functional.model import FunctionalModel
from amaml_tf.learner.parts import MetaStep, Part, side_by_side
from amaml_tf.learner.registered_gradients import RegisteredGradients
from amaml_tf.learner.values import Values
from amaml_tf.solvers.diagnostics import Diagnostics

R = TypeVar("R")


class Batches:
    """What an algorithm computes of batches of tasks.

    Args:
        function: model and loss; it says whether tasks are separate.
        algorithm: how to adapt, and the meta-gradient.
        task_clip_norm: see `TaskWeights.clipped`; None clips nothing.
        gradients: where the custom gradients of graphs are noted.
    """

    def __init__(
        self,
        function: FunctionalModel,
        algorithm: Algorithm,
        task_clip_norm: float | None,
        gradients: RegisteredGradients,
    ) -> None:
        self._function = function
        self._algorithm = algorithm
        self._task_clip_norm = task_clip_norm
        self._gradients = gradients

    def meta_gradients(
        self, values: Values, episodes: Episodes, places: tf.Tensor | None
    ) -> MetaGradients:
        """Returns what `Algorithm.meta_gradients` returns; `places` are those of the tasks."""
        if places is None and self._algorithm.needs_places:
            places = self._algorithm.places(number_of_tasks(episodes), self._function.dtype)

        def found(tasks: tuple[Any, ...]) -> MetaGradients:
            episodes, *where = tasks
            given = {"places": where[0]} if where else {}
            return self._algorithm.meta_gradients(
                self._function, values.state, episodes, self._task_clip_norm, **given
            )

        tasks = (episodes,) if places is None else (episodes, places)
        with values.held_by(self._function.model, self._algorithm):
            if self._is_at_once(tasks):
                return found(tasks)
            part = self._side_by_side(lambda task: MetaStep(found(task), ()).part(), tasks)
            return MetaStep.of(part, len(values.trainable)).result

    def adapt(self, values: Values, support: Examples) -> tuple[tf.Tensor, Diagnostics]:
        """Returns what `Algorithm.adapt` returns."""

        def found(tasks: tuple[Any, ...]) -> tuple[tf.Tensor, Diagnostics]:
            return self._algorithm.adapt(self._function, values.state, *tasks)

        return self._rows(values, found, (support,))

    def advance(
        self,
        values: Values,
        support: Examples,
        adapted: tf.Tensor,
        stretch: tf.Tensor,
        longest: float,
    ) -> tuple[tf.Tensor, Diagnostics]:
        """Returns what `Algorithm.advance` returns."""

        def found(tasks: tuple[Any, ...]) -> tuple[tf.Tensor, Diagnostics]:
            support, adapted = tasks
            return self._algorithm.advance(
                self._function, values.state, support, adapted, stretch, longest
            )

        return self._rows(values, found, (support, adapted))

    def _rows(
        self, values: Values, program: Callable[[tuple[Any, ...]], R], tasks: tuple[Any, ...]
    ) -> R:
        """Returns what `program`, whose results have a row for each task, gives for all tasks."""
        with values.held_by(self._function.model, self._algorithm):
            if self._is_at_once(tasks):
                return program(tasks)
            return self._side_by_side(lambda task: Part([], program(task)), tasks).rows

    def _is_at_once(self, tasks: tuple[Any, ...]) -> bool:
        """Whether the tasks are one program; what is not compiled is, to be stepped through."""
        number = number_of_tasks(tf.nest.flatten(tasks))
        alone = isinstance(number, int) and number == 1
        return not self._function.separate or alone or tf.executing_eagerly()

    def _side_by_side(
        self, program: Callable[[tuple[Any, ...]], Part], tasks: tuple[Any, ...]
    ) -> Part:
        def noted(tasks: tuple[Any, ...]) -> Part:
            found = program(tasks)
            self._gradients.note()
            return found

        number = number_of_tasks(tf.nest.flatten(tasks))
        # Not all of them run at a time, but how many do depends on the machine, and no result may.
        copies = number if isinstance(number, int) else ASSUMED_TASKS
        with _sharing_memory(self._function, copies):
            return side_by_side(noted, tasks)


@contextlib.contextmanager
def _sharing_memory(function: FunctionalModel, copies: int) -> Iterator[None]:
    """In this context, programs are traced of which `copies` share the memory."""
    before, function.copies = function.copies, copies
    try:
        yield
    finally:
        function.copies = before
