"""First-order MAML: MAML without second derivatives."""

from __future__ import annotations

import tensorflow as tf

from amaml_tf.algorithms.base import REGISTRY
from amaml_tf.algorithms.end_points import EndPointAlgorithm, EndPoints


@REGISTRY.register("first_order_maml")
class FirstOrderMAML(EndPointAlgorithm):
    """MAML without second derivatives: the meta-gradient is that of the query loss at u(T).

    On long runs it does not approximate MAML: the two gradients have little in common.

    Args:
        step_size: learning rate of the inner steps, > 0.
        num_steps: inner steps, >= 1.

    Reference:
        Finn, Abbeel, Levine, "Model-agnostic meta-learning for fast adaptation of deep networks",
        ICML 2017, section 5.2.
    """

    def __init__(self, step_size: float = 0.01, num_steps: int = 5) -> None:
        super().__init__(step_size, num_steps)

    def task_gradients(self, ends: EndPoints) -> tuple[tf.Tensor, None]:
        return ends.query_gradients, None
