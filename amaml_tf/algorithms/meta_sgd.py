"""Meta-SGD: MAML with a learned inner learning rate for every parameter."""

from __future__ import annotations

from amaml_tf.algorithms.adjoint_maml import AdjointMAML
from amaml_tf.algorithms.base import REGISTRY
from amaml_tf.algorithms.maml import gradient_descent_flow


@REGISTRY.register("meta_sgd")
class MetaSGD(AdjointMAML):
    """MAML that also learns an inner learning rate for every parameter.

    Rates are learned as logarithms: they stay positive, and a step of the meta-optimizer changes
    them by a factor. (Those of the paper can become negative, and start at random values.) The
    meta-gradients of the initialization and of the rates are exact.

    Args:
        step_size: initial value of all rates, > 0.
        num_steps: inner steps, >= 1. Default 1, as in the paper.

    Reference:
        Li, Zhou, Chen, Li, "Meta-SGD: Learning to learn quickly for few-shot learning", 2017.
    """

    def __init__(self, step_size: float = 0.01, num_steps: int = 1) -> None:
        super().__init__(gradient_descent_flow(step_size, num_steps), learned_rates="entry")
