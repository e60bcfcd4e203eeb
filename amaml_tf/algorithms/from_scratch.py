"""From scratch: no meta-learning."""

from __future__ import annotations

import tensorflow as tf

from amaml_tf.adaptation import Start
from amaml_tf.algorithms.base import Episodes
from amaml_tf.algorithms.no_inner_run import NoInnerRun
from amaml_tf.functional import FunctionalModel


class FromScratch(NoInnerRun):
    """Keeps the random initialization; the baseline that tells what meta-learning is worth.

    Its meta-gradient is 0, so that meta-steps change nothing and cost next to nothing. Only an
    optimizer with weight decay (AdamW, Lion) would move the initialization still: use none.

    Args:
        flow: the inner run of evaluation and use. Default `GradientFlow()`.

    Raises:
        ValueError: if the flow's time or rates are to be learned: nothing here learns them.
    """

    def task_gradients(
        self, function: FunctionalModel, state: list[tf.Tensor], episodes: Episodes, start: Start
    ) -> tf.Tensor:
        del function, state, episodes
        return tf.zeros_like(start.adapted)
