"""Meta-SGD."""

from __future__ import annotations

from amaml_tf.algorithms.adjoint_maml import AdjointMAML
from amaml_tf.algorithms.maml import gradient_descent_flow


class MetaSGD(AdjointMAML):
    """MAML that learns, with the initialization, an inner learning rate for every parameter.

    Rates are learned as logarithms: they stay positive, and a step of the meta-optimizer changes
    them by a factor. (The paper's may become negative, and start at random.) The exact
    meta-gradient, of both.

    Args:
        step_size: what all rates start at, > 0.
        num_steps: inner steps, >= 1. Default 1, of the paper.

    Reference:
        Li, Zhou, Chen, Li, "Meta-SGD: Learning to learn quickly for few-shot learning", 2017.
    """

    def __init__(self, step_size: float = 0.01, num_steps: int = 1) -> None:
        super().__init__(gradient_descent_flow(step_size, num_steps, learned_rates="entry"))
