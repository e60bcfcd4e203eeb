"""Reptile."""

from __future__ import annotations

import tensorflow as tf

from amaml_tf.adaptation import Adaptation, Start
from amaml_tf.algorithms.first_order import FirstOrder


class Reptile(FirstOrder):
    """Moves the initialization towards where the inner runs end: the meta-gradient is θ - u(T).

    It learns from the support sets alone; query sets are only measured.

    Args:
        step_size: learning rate of the inner steps, > 0.
        num_steps: inner steps, >= 1.

    Reference:
        Nichol, Achiam, Schulman, "On first-order meta-learning algorithms", 2018, algorithm 2.
    """

    def task_gradients(
        self, start: Start, adaptation: Adaptation, query_gradients: tf.Tensor
    ) -> tf.Tensor:
        del query_gradients
        return start.adapted - adaptation.adapted
