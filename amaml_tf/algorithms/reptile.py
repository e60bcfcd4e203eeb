"""Reptile: moves the initialization towards the adapted parameters."""

from __future__ import annotations

import tensorflow as tf

from amaml_tf.algorithms.base import REGISTRY
from amaml_tf.algorithms.end_points import EndPointAlgorithm, EndPoints


@REGISTRY.register("reptile")
class Reptile(EndPointAlgorithm):
    """Moves the initialization towards the adapted parameters: the meta-gradient is θ - u(T).

    It learns only from the support sets; the query loss is only measured.

    Args:
        step_size: learning rate of the inner steps, > 0.
        num_steps: inner steps, >= 1.

    Reference:
        Nichol, Achiam, Schulman, "On first-order meta-learning algorithms", 2018, algorithm 2.
    """

    def __init__(self, step_size: float = 0.01, num_steps: int = 5) -> None:
        super().__init__(step_size, num_steps)

    def task_gradients(self, ends: EndPoints) -> tuple[tf.Tensor, None]:
        return ends.start - ends.adapted, None
