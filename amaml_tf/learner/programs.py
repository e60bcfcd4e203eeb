"""The compiled programs of a learner: what it computes of batches of tasks, and of one task.

How they are executed is decided when the first one is traced, by trying.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import tensorflow as tf

from amaml_tf.algorithms.base import Algorithm, MetaDiagnostics, MetaGradients
from amaml_tf.algorithms.task_weights import arrived
from amaml_tf.aliases import Outputs, Scalar
from amaml_tf.episodes import Episodes, Examples, number_of_tasks
from amaml_tf.errors import UsageError
from amaml_tf.flow import failure
from amaml_tf.functional import execution
from amaml_tf.functional.execution import Execution
from amaml_tf.functional.model import FunctionalModel, State
from amaml_tf.functional.query_statistics import Queries
from amaml_tf.learner.curves import Predictions
from amaml_tf.learner.registered_gradients import RegisteredGradients
from amaml_tf.solvers.diagnostics import Diagnostics

F = TypeVar("F", bound=Callable[..., object])


class Programs:
    """What a learner computes, each compiled once.

    Args:
        function: model and loss.
        algorithm: how to adapt, and the meta-gradient.
        task_clip_norm: see `TaskWeights.clipped`; None clips nothing.
        ways: how the tasks may be executed; the first way that works is chosen.
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
        #: What is computed of a state and of a batch of tasks.
        self._of_tasks: dict[str, Callable[..., Any]] = {
            "meta_gradients": functools.partial(
                algorithm.meta_gradients, function, task_clip_norm=task_clip_norm
            ),
            "adapt": functools.partial(algorithm.adapt, function),
            "advance": functools.partial(algorithm.advance, function),
        }
        self._ways = list(ways)
        self._restricted = restricted
        self._run_eagerly = run_eagerly
        self._tried: set[str] = set()
        self._lock = threading.Lock()
        #: Frees the graphs of these programs with them. A program around them notes its own.
        self.gradients = RegisteredGradients(self)
        # For support sets of any size: XLA would compile anew for each.
        self._adapt_one = self._compiled(self._adapt_one_task, reduce_retracing=True)
        self._arrange(self._ways[0])

    def _compiled(self, program: F, **options: bool) -> F:
        gradients = self.gradients

        def noted(*arguments: object) -> object:
            results = program(*arguments)
            gradients.note()
            return results

        return program if self._run_eagerly else tf.function(noted, autograph=False, **options)

    def _arrange(self, way: Execution) -> None:
        self.execution = way
        if self._function.vectorize != way.vectorize:
            self._function.arrange(way.vectorize)
        # What XLA compiles ends before the failure check, which XLA would remove.
        self._programs: dict[str, Any] = {
            name: self._compiled(program, jit_compile=way.jit_compile)
            for name, program in self._of_tasks.items()
        }

    def _settled(self, name: str, *arguments: object) -> Callable[..., Any]:
        """Returns a program, in the first way of execution in which it works."""
        simplest = self._ways == [Execution(vectorize=False, jit_compile=False)]
        with self._lock:
            if name not in self._tried and not self._run_eagerly and not simplest:
                self._try(name, tf.nest.map_structure(_spec_of, arguments))
                self._tried.add(name)
            return self._programs[name]

    def _result(self, name: str, *arguments: object) -> Any:
        return self._settled(name, *arguments)(*arguments)

    def _try(self, name: str, specs: Any) -> None:
        others = any(not way.vectorize for way in self._ways)

        def attempt(way: Execution) -> None:
            if way != self.execution:
                self._arrange(way)
            if way.vectorize:
                state, support = specs[0], specs[1][0] if name == "meta_gradients" else specs[1]
                one = self._function.of_one_task(support, state)
                execution.require_vectorizable(one, if_quick=others)
            program = self._programs[name].get_concrete_function(*specs)
            if way.jit_compile and not execution.inside_xla():
                execution.require_compilable(program)

        found = execution.choose(self._ways, attempt, self._restricted)
        self._ways = self._ways[self._ways.index(found) :]

    def meta_gradients(self, episodes: Episodes, state: State) -> MetaGradients:
        """Returns the meta-gradient of a batch of episodes."""
        found: MetaGradients = self._result("meta_gradients", state, episodes)
        return found

    def adapt(self, support: Examples, state: State) -> tuple[tf.Tensor, Diagnostics]:
        """Returns what `Algorithm.adapt` returns."""
        found: tuple[tf.Tensor, Diagnostics] = self._result("adapt", state, support)
        return found

    def advance(
        self,
        support: Examples,
        state: State,
        adapted: tf.Tensor,
        stretch: tf.Tensor,
        longest: float,
    ) -> tuple[tf.Tensor, Diagnostics]:
        """Returns what `Algorithm.advance` returns."""
        found: tuple[tf.Tensor, Diagnostics] = self._result(
            "advance", state, support, adapted, stretch, longest
        )
        return found

    def query_before(
        self, episodes: Episodes, state: State, query_statistics: str = "batch"
    ) -> tuple[tf.Tensor, Outputs]:
        """Returns query losses and outputs of the initialization itself."""
        if not self._tried:
            self._settled("adapt", state, episodes[0])
        start = self._function.initialization(number_of_tasks(episodes))
        return self.query(*start, state, episodes, query_statistics)

    def predict(self, episodes: Episodes, query_statistics: str = "batch") -> Predictions:
        """Returns query losses and outputs before and after adaptation."""
        function, state = self._function, self._function.state()
        adapted, diagnostics = self.adapt(episodes[0], state)
        held = function.initialization(number_of_tasks(episodes)).held
        after = self.query(adapted, held, state, episodes, query_statistics)
        dropped = tf.reduce_sum(tf.cast(~arrived(diagnostics, after[0]), tf.int32))
        before = self.query_before(episodes, state, query_statistics)
        return Predictions(before, after, MetaDiagnostics(diagnostics, None, dropped))

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
