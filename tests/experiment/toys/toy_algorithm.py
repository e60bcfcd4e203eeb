"""An algorithm without a flow: steps of one length, and a first-order meta-gradient."""

import tensorflow as tf

from amaml_tf import algorithms
from amaml_tf.algorithms.task_weights import mean_over_tasks
from amaml_tf.episodes import Episodes, Examples, number_of_tasks
from amaml_tf.functional.model import FunctionalModel, State
from amaml_tf.solvers.diagnostics import COMPLETED, NON_FINITE, Diagnostics, nothing_done


@algorithms.REGISTRY.register("toy_algorithm")
class NormalizedDescent(algorithms.Algorithm):
    """Steps of length `step_size`, but shorter where the gradient is below `floor`."""

    def __init__(self, step_size: float = 0.01, num_steps: int = 5, floor: float = 1e-3) -> None:
        super().__init__()
        self.step_size = step_size
        self.num_steps = num_steps
        self.floor = floor

    def adapt(
        self, function: FunctionalModel, state: State, support: Examples
    ) -> tuple[tf.Tensor, Diagnostics]:
        adapted, held = function.initialization(number_of_tasks(support))
        done = nothing_done(adapted, tf.zeros_like(adapted[:, 0]))
        for _ in range(self.num_steps):
            gradient = function.gradient(adapted, held, state, *support)
            length = tf.norm(gradient, axis=-1, keepdims=True)
            adapted -= self.step_size * gradient / tf.maximum(length, self.floor)
        finite = tf.reduce_all(tf.math.is_finite(adapted), axis=-1)
        steps = tf.ones_like(done.num_evaluations) * self.num_steps
        done = done._replace(
            status=tf.where(finite, COMPLETED, NON_FINITE),
            num_accepted_steps=steps,
            num_evaluations=steps,
        )
        return adapted, done

    def meta_gradients(
        self,
        function: FunctionalModel,
        state: State,
        episodes: Episodes,
        task_clip_norm: float | None = None,
    ) -> algorithms.MetaGradients:
        support, query = episodes
        adapted, forward = self.adapt(function, state, support)
        held = function.initialization(number_of_tasks(episodes)).held
        losses, gradients, _, outputs = function.query_gradient(adapted, held, state, *query)
        return mean_over_tasks(
            function, gradients, losses, outputs, forward, task_clip_norm=task_clip_norm
        )
