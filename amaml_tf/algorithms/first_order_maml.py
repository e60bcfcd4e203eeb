"""First-order MAML."""

from __future__ import annotations

import tensorflow as tf

from amaml_tf.adaptation import Adaptation, Start
from amaml_tf.algorithms.first_order import FirstOrder


class FirstOrderMAML(FirstOrder):
    """MAML without second derivatives: the gradient of the query loss where the inner run ends.

    No approximation of MAML on long runs: there the two gradients have little in common.

    Args:
        step_size: learning rate of the inner steps, > 0.
        num_steps: inner steps, >= 1.

    Reference:
        Finn, Abbeel, Levine, "Model-agnostic meta-learning for fast adaptation of deep networks",
        ICML 2017, section 5.2.
    """

    def task_gradients(
        self, start: Start, adaptation: Adaptation, query_gradients: tf.Tensor
    ) -> tf.Tensor:
        del start, adaptation
        return query_gradients
