"""Joint training: one network for all tasks."""

from __future__ import annotations

import tensorflow as tf

from amaml_tf.adaptation import Start
from amaml_tf.algorithms.base import Episodes
from amaml_tf.algorithms.no_inner_run import NoInnerRun
from amaml_tf.functional import FunctionalModel


class JointTraining(NoInnerRun):
    """Ordinary training on the examples of all tasks; a baseline that is then fine-tuned.

    The meta-gradient is the mean over tasks of ∇L(θ), with L the loss on the support and query
    examples of a task as one set: every example of a task counts alike. Tasks whose targets mean
    different things, such as classes numbered anew in every episode, leave nothing to learn.

    Args:
        flow: the inner run (fine-tuning) of evaluation and use. Default `GradientFlow()`.

    Raises:
        ValueError: if the flow's time or rates are to be learned: nothing here learns them.
    """

    def task_gradients(
        self, function: FunctionalModel, state: list[tf.Tensor], episodes: Episodes, start: Start
    ) -> tf.Tensor:
        support, query = episodes
        x, y = tf.nest.map_structure(
            lambda one, other: tf.concat([one, other], axis=1), support, query
        )
        return function.gradient(start.adapted, start.held, state, x, y)
