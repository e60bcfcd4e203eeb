"""Baseline: joint training of one network for all tasks."""

from __future__ import annotations

import tensorflow as tf

from amaml_tf.algorithms.base import REGISTRY
from amaml_tf.algorithms.no_inner_run import NoInnerRun
from amaml_tf.episodes import Episodes
from amaml_tf.functional.model import FunctionalModel, Parameters, State


@REGISTRY.register("joint_training")
class JointTraining(NoInnerRun):
    """Ordinary training on the examples of all tasks: a baseline that is fine-tuned afterwards.

    The meta-gradient is the mean over tasks of ∇L(θ), where L is the loss on the support and query
    examples of a task as one set: all examples of a task count equally. If targets mean something
    different in each task (classes that every episode numbers anew), there is nothing to learn.

    Args:
        flow: the inner run (fine-tuning) for evaluation and use. Default `GradientFlow()`.
    """

    def task_gradients(
        self, function: FunctionalModel, state: State, episodes: Episodes, start: Parameters
    ) -> tf.Tensor:
        support, query = episodes
        x, y = tf.nest.map_structure(
            lambda one, other: tf.concat([one, other], axis=1), support, query
        )
        return function.gradient(start.adapted, start.held, state, x, y)
