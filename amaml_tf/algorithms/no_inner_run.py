"""Base class of baselines that adapt in evaluation, but not in training."""

from __future__ import annotations

import abc

import tensorflow as tf

from amaml_tf.algorithms.base import MetaGradients
from amaml_tf.algorithms.flow_based import FlowBased
from amaml_tf.algorithms.task_weights import mean_over_tasks
from amaml_tf.episodes import Episodes, number_of_tasks
from amaml_tf.flow.gradient_flow import GradientFlow
from amaml_tf.functional.model import FunctionalModel, State
from amaml_tf.functional.parameters import Parameters
from amaml_tf.solvers.diagnostics import COMPLETED, NON_FINITE, nothing_done


class NoInnerRun(FlowBased):
    """An algorithm whose meta-gradient is taken at the initialization itself.

    The losses and outputs of its `MetaGradients` are those of the initialization; for the other
    algorithms they are those after adaptation. An inner run would be wasted: nothing uses it.

    Args:
        flow: the inner run for evaluation and use. Default `GradientFlow()`.
    """

    uses_adjoint = False

    def __init__(self, flow: GradientFlow | None = None) -> None:
        super().__init__(flow or GradientFlow())

    @abc.abstractmethod
    def task_gradients(
        self, function: FunctionalModel, state: State, episodes: Episodes, start: Parameters
    ) -> tf.Tensor:
        """Returns each task's part of the meta-gradient, `[B, P]`."""

    def meta_gradients(
        self,
        function: FunctionalModel,
        state: State,
        episodes: Episodes,
        task_clip_norm: float | None = None,
    ) -> MetaGradients:
        start = function.initialization(number_of_tasks(episodes))
        losses, outputs = function.query(start.adapted, start.held, state, *episodes[1])
        gradients = self.task_gradients(function, state, episodes, start)
        finite = tf.reduce_all(tf.math.is_finite(gradients), axis=-1)
        forward = nothing_done(start.adapted, tf.zeros_like(losses))
        forward = forward._replace(status=tf.where(finite, COMPLETED, NON_FINITE))
        return mean_over_tasks(
            function, gradients, losses, outputs, forward, task_clip_norm=task_clip_norm
        )
