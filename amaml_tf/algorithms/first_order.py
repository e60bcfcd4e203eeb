"""What first-order algorithms share: an inner run that is not differentiated."""

from __future__ import annotations

import abc

import tensorflow as tf

from amaml_tf.adaptation import Adaptation, Start
from amaml_tf.algorithms.base import (
    Algorithm,
    Episodes,
    MetaDiagnostics,
    MetaGradients,
    TaskWeights,
    arrived,
    number_of_tasks,
)
from amaml_tf.algorithms.maml import gradient_descent_flow
from amaml_tf.functional import FunctionalModel


class FirstOrder(Algorithm):
    """Gradient descent, and a meta-gradient made of its end points alone.

    Args:
        step_size: learning rate of the inner steps, > 0.
        num_steps: inner steps, >= 1.
    """

    def __init__(self, step_size: float = 0.01, num_steps: int = 5) -> None:
        super().__init__(gradient_descent_flow(step_size, num_steps))

    @abc.abstractmethod
    def task_gradients(
        self, start: Start, adaptation: Adaptation, query_gradients: tf.Tensor
    ) -> tf.Tensor:
        """Returns each task's part of the meta-gradient, `[B, P]`.

        Args:
            start: u(0).
            adaptation: u(T).
            query_gradients: `[B, P]`, of the query loss at u(T).
        """

    def meta_gradients(
        self, function: FunctionalModel, state: list[tf.Tensor], episodes: Episodes
    ) -> MetaGradients:
        support, (query_x, query_y) = episodes
        parameters = [tf.convert_to_tensor(v) for v in function.model.trainable_variables]
        start = self.start(function, parameters, number_of_tasks(episodes))
        adaptation = self.adapt(function, state, support, start, differentiable=False)
        losses, query_gradients, _, outputs = function.query_gradient(
            adaptation.adapted, start.held, state, query_x, query_y
        )
        share = TaskWeights.of(arrived(adaptation.diagnostics, losses), function.dtype)
        gradient = share.mean(self.task_gradients(start, adaptation, query_gradients))
        return MetaGradients(
            loss=share.mean(losses),
            gradients=function.layout.unravel(gradient),
            algorithm_gradients=[],
            losses=losses,
            outputs=outputs,
            diagnostics=MetaDiagnostics(adaptation.diagnostics, None, share.num_dropped),
        )
