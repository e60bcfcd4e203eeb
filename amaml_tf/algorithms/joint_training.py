"""Baseline: joint training of one network for all tasks."""

from __future__ import annotations

import tensorflow as tf

from amaml_tf.algorithms.base import REGISTRY
from amaml_tf.algorithms.no_inner_run import NoInnerRun
from amaml_tf.aliases import Tensors
from amaml_tf.episodes import Episodes, Examples
from amaml_tf.functional.model import FunctionalModel, State
from amaml_tf.functional.parameters import Parameters


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
        return function.gradient(start.adapted, start.held, state, *_joined(*episodes))


def _joined(support: Examples, query: Examples) -> Examples:
    """Returns the examples of both sets as one set; if only one has weights, the others are 1."""
    if len(support) != len(query):
        weight = (support[2:] or query[2:])[0]
        support, query = (
            examples if len(examples) == 3 else (*examples, _ones(weight, examples[1]))
            for examples in (support, query)
        )
    return tf.nest.map_structure(
        lambda one, other: tf.concat([one, other], axis=1), tuple(support), tuple(query)
    )


def _ones(weight: Tensors, y: Tensors) -> Tensors:
    """Returns weights of 1 in the structure of `weight`, for as many examples as `y` has."""
    num_examples = tf.shape(tf.nest.flatten(y)[0])[1]

    def one(each: tf.Tensor) -> tf.Tensor:
        size = tf.shape(each)
        return tf.ones(tf.concat([size[:1], [num_examples], size[2:]], axis=0), each.dtype)

    return tf.nest.map_structure(one, weight)
