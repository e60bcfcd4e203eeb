"""The compiled programs of a learner: what it computes of batches of tasks, and of one task."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import TypeVar

import tensorflow as tf

from amaml_tf.algorithms.base import Algorithm, MetaDiagnostics, MetaGradients
from amaml_tf.algorithms.task_weights import arrived
from amaml_tf.aliases import Outputs, Scalar
from amaml_tf.episodes import Episodes, Examples, number_of_tasks
from amaml_tf.errors import UsageError
from amaml_tf.flow import failure
from amaml_tf.functional.model import FunctionalModel, State
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
        jit_compile: whether XLA compiles what is computed of batches.
        run_eagerly: compile nothing.
    """

    def __init__(
        self,
        function: FunctionalModel,
        algorithm: Algorithm,
        task_clip_norm: float | None,
        jit_compile: bool,
        run_eagerly: bool,
    ) -> None:
        if task_clip_norm is not None and not task_clip_norm > 0:
            raise UsageError(
                f"Expected task_clip_norm to be above 0, got {task_clip_norm}; pass a positive "
                "number, or None to clip nothing."
            )
        self._function = function
        self._algorithm = algorithm
        self._task_clip_norm = task_clip_norm
        self._one_task = function.side_by_side()

        #: Frees the graphs of these programs with them. A program around them notes its own.
        self.gradients = gradients = RegisteredGradients(self)

        def compiled(program: F, **options: bool) -> F:
            @functools.wraps(program)
            def noted(*arguments: object) -> object:
                results = program(*arguments)
                gradients.note()
                return results

            return program if run_eagerly else tf.function(noted, autograph=False, **options)

        # What XLA compiles ends before the failure check, which XLA would remove.
        self.meta_gradients = compiled(self._meta_gradients, jit_compile=jit_compile)
        self.adapt = compiled(self._adapt, jit_compile=jit_compile)
        self.advance = compiled(self._advance, jit_compile=jit_compile)
        # For support sets of any size: XLA would compile anew for each.
        self._adapt_one = compiled(self._adapt_one_task, reduce_retracing=True)

    def query_before(self, episodes: Episodes, state: State) -> tuple[tf.Tensor, Outputs]:
        """Returns query losses and outputs of the initialization itself."""
        start = self._function.initialization(number_of_tasks(episodes))
        return self._function.query(*start, state, *episodes[1])

    def predict(self, episodes: Episodes) -> Predictions:
        """Returns query losses and outputs before and after adaptation."""
        function, state = self._function, self._function.state()
        adapted, diagnostics = self.adapt(episodes[0], state)
        held = function.initialization(number_of_tasks(episodes)).held
        after = function.query(adapted, held, state, *episodes[1])
        dropped = tf.reduce_sum(tf.cast(~arrived(diagnostics, after[0]), tf.int32))
        before = self.query_before(episodes, state)
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

    def _meta_gradients(self, episodes: Episodes, state: State) -> MetaGradients:
        return self._algorithm.meta_gradients(self._function, state, episodes, self._task_clip_norm)

    def _adapt(self, support: Examples, state: State) -> tuple[tf.Tensor, Diagnostics]:
        return self._algorithm.adapt(self._function, state, support)

    def _adapt_one_task(
        self, support: Examples, state: State
    ) -> tuple[list[tf.Tensor], Diagnostics]:
        batch = tf.nest.map_structure(lambda v: v[tf.newaxis], support)
        adapted, diagnostics = self._algorithm.adapt(self._one_task, state, batch)
        held = self._one_task.initialization(1).held
        return self._one_task.unravel(adapted[0], held[0]), diagnostics

    def _advance(
        self,
        support: Examples,
        state: State,
        adapted: tf.Tensor,
        stretch: tf.Tensor,
        longest: float,
    ) -> tuple[tf.Tensor, Diagnostics]:
        return self._algorithm.advance(self._function, state, support, adapted, stretch, longest)


def check(diagnostics: MetaDiagnostics, final_time: Scalar) -> list[tf.Operation]:
    """Raises AdaptationError if a task failed, forwards or backwards; see `failure.check`."""
    forward, backward = diagnostics.forward, diagnostics.backward
    if backward is not None:  # the forward's own failure comes first
        forward = forward._replace(
            status=tf.where(forward.status < 0, forward.status, backward.status)
        )
    return failure.check(forward, final_time)
