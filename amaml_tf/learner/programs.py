"""The compiled programs of a learner: what it computes of batches of tasks, and of one task.

How they are executed is decided when the first one is traced, by trying.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import tensorflow as tf

from amaml_tf.algorithms.base import Algorithm, MetaDiagnostics
from amaml_tf.algorithms.task_weights import arrived
from amaml_tf.aliases import Outputs, Scalar, Tensors
from amaml_tf.episodes import Episodes, Examples, number_of_tasks
from amaml_tf.errors import UsageError
from amaml_tf.flow import failure
from amaml_tf.functional import execution
from amaml_tf.functional.execution import Execution
from amaml_tf.functional.model import FunctionalModel, State
from amaml_tf.functional.parameters import Parameters, for_every_task
from amaml_tf.functional.query_statistics import Queries
from amaml_tf.learner.batches import Batches
from amaml_tf.learner.curves import Predictions
from amaml_tf.learner.parts import MetaStep, Part, Split
from amaml_tf.learner.registered_gradients import RegisteredGradients
from amaml_tf.learner.values import Values
from amaml_tf.solvers.diagnostics import Diagnostics

F = TypeVar("F", bound=Callable[..., object])


class Programs:
    """What a learner computes, each compiled once.

    Args:
        function: model and loss.
        algorithm: how to adapt, and the meta-gradient.
        task_clip_norm: see `TaskWeights.clipped`; None clips nothing.
        ways: how the tasks may be executed; the first way that works is chosen.
        split: the parts in which a batch of tasks is solved.
        restricted: whether the user has left out ways.
        run_eagerly: compile nothing.

    Attributes:
        execution: how the tasks are executed, so far as is known.
    """

    def __init__(
        self,
        function: FunctionalModel,
        algorithm: Algorithm,
        task_clip_norm: float | None,
        ways: Sequence[Execution],
        split: Split,
        *,
        restricted: bool,
        run_eagerly: bool,
    ) -> None:
        if task_clip_norm is not None and not task_clip_norm > 0:
            raise UsageError(
                f"Expected task_clip_norm to be above 0, got {task_clip_norm}; pass a positive "
                "number, or None to clip nothing."
            )
        self._function = function
        self._algorithm = algorithm
        self._one_task = function.side_by_side()
        #: Query losses and outputs of a batch of tasks.
        self.query = Queries(function)
        self._ways = list(ways)
        self._restricted = restricted
        self._run_eagerly = run_eagerly
        self.split = split
        #: Frees the graphs of these programs with them. A program around them notes its own.
        self.gradients = RegisteredGradients(self)
        self._batches = Batches(function, algorithm, task_clip_norm, self.gradients)
        self._tried: set[str] = set()
        self._lock = threading.Lock()
        # For support sets of any size: XLA would compile anew for each.
        self._adapt_one = self._compiled(self._adapt_one_task, reduce_retracing=True)
        self._of_tasks: dict[str, Callable[..., Any]] = {
            "meta_step": self._meta_step,
            "adapt": self._adapt,
            "advance": self._advance,
            "query_before": self._query_before,
            "predict": self._predict,
        }
        self._in_parts = self._compiled(self._split_tasks)
        self._arrange(self._ways[0])

    def _compiled(self, program: F, **options: bool) -> F:
        gradients = self.gradients

        @functools.wraps(program)
        def noted(*arguments: object) -> object:
            results = program(*arguments)
            gradients.note()
            return results

        return program if self._run_eagerly else tf.function(noted, autograph=False, **options)

    def _arrange(self, way: Execution) -> None:
        self.execution = way
        self._function.arrange(
            way.vectorize, jit_derivatives=way.jit_derivatives, separate=way.separate
        )
        # What XLA compiles ends before the failure check, which XLA would remove.
        self._programs: dict[str, Any] = {
            name: self._compiled(program, jit_compile=way.jit_compile)
            for name, program in (
                ("meta_gradients", self._batches.meta_gradients),
                ("adapt", self._batches.adapt),
                ("advance", self._batches.advance),
            )
        }

    def _settled(self, name: str, *arguments: object) -> Callable[..., Any]:
        """Returns a program, in the first way of execution in which it works."""
        simplest = self._ways == [Execution(vectorize=False, jit_compile=False)]
        with self._lock:
            if name not in self._tried and not self._run_eagerly and not simplest:
                self._try(name, tf.nest.map_structure(_spec_of, arguments))
                self._tried.add(name)
            return self._programs[name]

    def _try(self, name: str, specs: Any) -> None:
        others = any(not way.vectorize for way in self._ways)
        values, tasks, *_ = specs
        support = tasks[0] if name == "meta_gradients" else tasks

        @functools.cache
        def loss_of_one() -> tf.types.experimental.ConcreteFunction:
            return self._function.of_one_task(support, values.state)

        def attempt(way: Execution) -> None:
            if way != self.execution:
                self._arrange(way)
            if way.vectorize or way.jit_derivatives:
                execution.require_fixed_sizes(loss_of_one())
            if way.vectorize and others:
                execution.require_quickly_vectorizable(loss_of_one())
            program = self._programs[name].get_concrete_function(*specs)
            if way.jit_compile and not execution.inside_xla():
                execution.require_compilable(program)

        found = execution.choose(self._ways, attempt, self._restricted)
        self._ways = self._ways[self._ways.index(found) :]

    def meta_step(self, episodes: Episodes, *, with_before: bool = True) -> MetaStep:
        """Returns the meta-gradient of a batch of episodes.

        Args:
            episodes: a batch.
            with_before: whether losses and outputs of the initialization are computed too.
        """
        if self.split.is_whole:
            return self._meta_step(
                Values.of(self._function, self._algorithm), (episodes, None), with_before
            )
        tasks = episodes, self._algorithm.places(number_of_tasks(episodes), self._function.dtype)
        part = self._parts("meta_step", tasks, with_before)
        return MetaStep.of(part, len(self._function.model.trainable_variables))

    def adapt(self, support: Examples) -> tuple[tf.Tensor, Diagnostics]:
        """Returns what `Algorithm.adapt` returns."""
        return self._rows("adapt", (support,))

    def advance(
        self, support: Examples, adapted: tf.Tensor, stretch: tf.Tensor, longest: float
    ) -> tuple[tf.Tensor, Diagnostics]:
        """Returns what `Algorithm.advance` returns."""
        return self._rows("advance", (support, adapted), stretch, longest)

    def query_before(
        self, episodes: Episodes, query_statistics: str = "batch"
    ) -> tuple[tf.Tensor, Outputs]:
        """Returns query losses and outputs of the initialization itself."""
        return self._rows("query_before", (episodes,), query_statistics)

    def predict(self, episodes: Episodes, query_statistics: str = "batch") -> Predictions:
        """Returns query losses and outputs before and after adaptation."""
        before, after, diagnostics = self._rows("predict", (episodes,), query_statistics)
        dropped = tf.reduce_sum(tf.cast(~arrived(diagnostics, after[0]), tf.int32))
        return Predictions(before, after, MetaDiagnostics(diagnostics, None, dropped))

    # -- a batch: at once, or in parts ------------------------------------------------------------

    def _rows(self, name: str, tasks: tuple[Tensors, ...], *shared: object) -> Any:
        """Returns what a program, whose results have a row for each task, gives for all tasks."""
        if self.split.is_whole:
            return self._of_tasks[name](Values.of(self._function, self._algorithm), tasks, *shared)
        return self._parts(name, tasks, *shared).rows

    def _parts(self, name: str, tasks: tuple[Tensors, ...], *shared: object) -> Part:
        return self._in_parts(name, Values.of(self._function, self._algorithm), tasks, *shared)

    def _split_tasks(
        self, name: str, values: Values, tasks: tuple[Tensors, ...], *shared: object
    ) -> Part:
        def of_some(values: Values, tasks: tuple[Tensors, ...]) -> Part:
            found = self._of_tasks[name](values, tasks, *shared)
            return found.part() if isinstance(found, MetaStep) else Part([], found)

        return self.split(of_some, values, tasks)

    # -- some tasks, with given values of the variables ------------------------------------------

    def _meta_step(
        self, values: Values, tasks: tuple[Episodes, tf.Tensor | None], with_before: bool
    ) -> MetaStep:
        episodes, where = tasks
        found = where if self._algorithm.needs_places else None
        result = self._settled("meta_gradients", values, episodes, found)(values, episodes, found)
        before = self._query_before(values, (episodes,), "batch") if with_before else ()
        return MetaStep(result, before)

    def _adapt(self, values: Values, tasks: tuple[Examples]) -> tuple[tf.Tensor, Diagnostics]:
        return self._settled("adapt", values, *tasks)(values, *tasks)

    def _advance(
        self,
        values: Values,
        tasks: tuple[Examples, tf.Tensor],
        stretch: tf.Tensor,
        longest: float,
    ) -> tuple[tf.Tensor, Diagnostics]:
        arguments = values, *tasks, stretch, longest
        return self._settled("advance", *arguments)(*arguments)

    def _query_before(
        self, values: Values, tasks: tuple[Episodes], query_statistics: str
    ) -> tuple[tf.Tensor, Outputs]:
        (episodes,) = tasks
        if not self._tried:
            self._settled("adapt", values, episodes[0])
        start = self._start(values, episodes)
        return self.query(*start, values.state, episodes, query_statistics)

    def _predict(
        self, values: Values, tasks: tuple[Episodes], query_statistics: str
    ) -> tuple[tuple[tf.Tensor, Outputs], tuple[tf.Tensor, Outputs], Diagnostics]:
        (episodes,) = tasks
        adapted, diagnostics = self._adapt(values, (episodes[0],))
        held = self._start(values, episodes).held
        after = self.query(adapted, held, values.state, episodes, query_statistics)
        return self._query_before(values, tasks, query_statistics), after, diagnostics

    def _start(self, values: Values, episodes: Episodes) -> Parameters:
        vectors = self._function.ravel(values.trainable)
        number = number_of_tasks(episodes)
        return Parameters(*(for_every_task(vector, number) for vector in vectors))

    def adapt_one(self, support: Examples, state: State) -> tuple[list[tf.Tensor], Diagnostics]:
        """Adapts to one task; one program serves support sets of all sizes.

        Args:
            support: (x, y) or (x, y, weight), without a task axis.
            state: values of the model's non-trainable variables.

        Returns:
            The adapted parameters, aligned with the trainable variables, and what it took.
        """
        return self._adapt_one(support, state)

    def _adapt_one_task(
        self, support: Examples, state: State
    ) -> tuple[list[tf.Tensor], Diagnostics]:
        batch = tf.nest.map_structure(lambda v: v[tf.newaxis], support)
        adapted, diagnostics = self._algorithm.adapt(self._one_task, state, batch)
        held = self._one_task.initialization(1).held
        return self._one_task.unravel(adapted[0], held[0]), diagnostics


def _spec_of(argument: object) -> object:
    return tf.TensorSpec.from_tensor(argument) if tf.is_tensor(argument) else argument


def check(
    diagnostics: MetaDiagnostics, final_time: Scalar, losses: tf.Tensor | None = None
) -> list[tf.Operation]:
    """Raises AdaptationError if a task failed, forwards, backwards or in its query loss.

    See `failure.check`. `losses` are those of the query sets, `[B]`; None: they may be anything.
    """
    forward, backward = diagnostics.forward, diagnostics.backward
    if backward is not None:  # the forward's own failure comes first
        forward = forward._replace(
            status=tf.where(forward.status < 0, forward.status, backward.status)
        )
    found = failure.check(forward, final_time)
    return found if losses is None else [*found, *failure.check_losses(losses)]
