"""First-order MAML."""

from __future__ import annotations

import tensorflow as tf

from amaml_tf.algorithms.end_points import EndPointAlgorithm, EndPoints


class FirstOrderMAML(EndPointAlgorithm):
    """MAML without second derivatives: the gradient of the query loss where the inner run ends.

    No approximation of MAML on long runs: there the two gradients have little in common.

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
