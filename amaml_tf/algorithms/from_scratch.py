"""Baseline without meta-learning: keeps the random initialization."""

from __future__ import annotations

import tensorflow as tf

from amaml_tf.algorithms.base import REGISTRY
from amaml_tf.algorithms.no_inner_run import NoInnerRun
from amaml_tf.episodes import Episodes
from amaml_tf.functional.model import FunctionalModel, State
from amaml_tf.functional.parameters import Parameters


@REGISTRY.register("from_scratch")
class FromScratch(NoInnerRun):
    """Keeps the random initialization: a baseline that shows the benefit of meta-learning.

    Its meta-gradient is 0: meta-steps change nothing and cost almost nothing. Only an optimizer
    with weight decay (AdamW, Lion) would still change the initialization: do not use one.

    Args:
        flow: the inner run for evaluation and use. Default `GradientFlow()`.
    """

    def task_gradients(
        self, function: FunctionalModel, state: State, episodes: Episodes, start: Parameters
    ) -> tf.Tensor:
        del function, state, episodes
        return tf.zeros_like(start.adapted)
