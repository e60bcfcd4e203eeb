"""What baselines share that adapt when they are tested, but not while they train."""

from __future__ import annotations

import abc

import tensorflow as tf

from amaml_tf.adaptation import Start
from amaml_tf.algorithms.base import (
    Algorithm,
    Episodes,
    MetaGradients,
    mean_over_tasks,
    number_of_tasks,
)
from amaml_tf.functional import FunctionalModel
from amaml_tf.gradient_flow import GradientFlow
from amaml_tf.solvers.diagnostics import COMPLETED, NON_FINITE, nothing_done


class NoInnerRun(Algorithm):
    """A meta-gradient at the initialization itself.

    Losses and outputs of its `MetaGradients` are those of the initialization, where the other
    algorithms have those after adaptation: an inner run that nothing learns from would be a waste.

    Args:
        flow: the inner run of evaluation and use. Default `GradientFlow()`.

    Raises:
        ValueError: if the flow's time or rates are to be learned: nothing here learns them.
    """

    def __init__(self, flow: GradientFlow | None = None) -> None:
        super().__init__(flow or GradientFlow())
        if self.flow.learn_final_time or self.flow.learned_rates != "none":
            raise ValueError(
                f"Expected a flow with nothing to learn for {type(self).__name__}, which trains "
                f"without an inner run, got learn_final_time={self.flow.learn_final_time} and "
                f"learned_rates={self.flow.learned_rates!r}. Leave them out, or use AdjointMAML."
            )

    @abc.abstractmethod
    def task_gradients(
        self, function: FunctionalModel, state: list[tf.Tensor], episodes: Episodes, start: Start
    ) -> tf.Tensor:
        """Returns each task's part of the meta-gradient, `[B, P]`."""

    def meta_gradients(
        self,
        function: FunctionalModel,
        state: list[tf.Tensor],
        episodes: Episodes,
        task_clip_norm: float | None = None,
    ) -> MetaGradients:
        parameters = [tf.convert_to_tensor(v) for v in function.model.trainable_variables]
        start = self.start(function, parameters, number_of_tasks(episodes))
        losses, outputs = function.query(start.adapted, start.held, state, *episodes[1])
        gradients = self.task_gradients(function, state, episodes, start)
        finite = tf.reduce_all(tf.math.is_finite(gradients), axis=-1)
        forward = nothing_done(start.adapted, tf.zeros_like(losses))
        forward = forward._replace(status=tf.where(finite, COMPLETED, NON_FINITE))
        return mean_over_tasks(
            function, gradients, losses, outputs, forward, task_clip_norm=task_clip_norm
        )
