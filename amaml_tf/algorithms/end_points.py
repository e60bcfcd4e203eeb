"""Base class of algorithms whose meta-gradient depends only on the ends of the inner run."""

from __future__ import annotations

import abc
from collections.abc import Callable
from typing import NamedTuple

import tensorflow as tf

from amaml_tf.algorithms.base import MetaGradients
from amaml_tf.algorithms.flow_based import FlowBased
from amaml_tf.algorithms.maml import gradient_descent_flow
from amaml_tf.algorithms.task_weights import mean_over_tasks
from amaml_tf.episodes import Episodes, number_of_tasks
from amaml_tf.functional.model import FunctionalModel, State
from amaml_tf.solvers.diagnostics import AdjointDiagnostics


class EndPoints(NamedTuple):
    """The start and end points of the inner runs of B tasks.

    Attributes:
        start: `[B, P]`, u(0).
        adapted: `[B, P]`, u(T).
        query_gradients: `[B, P]`, gradients of the query loss at u(T).
        hessian_product: maps vectors `[B, P]` to their products with the Hessian of the support
            loss at u(T).
    """

    start: tf.Tensor
    adapted: tf.Tensor
    query_gradients: tf.Tensor
    hessian_product: Callable[[tf.Tensor], tf.Tensor]


class EndPointAlgorithm(FlowBased):
    """Adapts by gradient descent; the meta-gradient depends only on its end points.

    Args:
        step_size: learning rate of the inner steps, > 0.
        num_steps: inner steps, >= 1.
        proximal_weight: w >= 0, for a term w/2 |u - θ|² added to the support loss.
    """

    def __init__(
        self, step_size: float = 0.01, num_steps: int = 5, *, proximal_weight: float = 0.0
    ) -> None:
        flow = gradient_descent_flow(step_size, num_steps, proximal_weight=proximal_weight)
        super().__init__(flow)

    @abc.abstractmethod
    def task_gradients(self, ends: EndPoints) -> tuple[tf.Tensor, AdjointDiagnostics | None]:
        """Returns each task's part of the meta-gradient, `[B, P]`, and its diagnostics or None."""

    def meta_gradients(
        self,
        function: FunctionalModel,
        state: State,
        episodes: Episodes,
        task_clip_norm: float | None = None,
    ) -> MetaGradients:
        support, query = episodes
        start = function.initialization(number_of_tasks(episodes))
        adapted, forward = self.adapt(function, state, support)
        losses, query_gradients, _, outputs = function.query_gradient(
            adapted, start.held, state, *query
        )

        def hessian_product(vector: tf.Tensor) -> tf.Tensor:
            return function.curvature(adapted, start.held, state, vector, *support)[1]

        ends = EndPoints(start.adapted, adapted, query_gradients, hessian_product)
        gradients, backward = self.task_gradients(ends)
        return mean_over_tasks(
            function, gradients, losses, outputs, forward, backward, task_clip_norm
        )
