"""MAML, computed by the discrete adjoint of gradient descent."""

from __future__ import annotations

from amaml_tf.algorithms.adjoint_maml import AdjointMAML
from amaml_tf.algorithms.base import REGISTRY
from amaml_tf.errors import UsageError
from amaml_tf.flow.gradient_flow import GradientFlow
from amaml_tf.solvers.gradient_descent import GradientDescent


def gradient_descent_flow(
    step_size: float,
    num_steps: int,
    proximal_weight: float = 0.0,
    max_checkpoints: int | None = None,
    adjoint: str = "discrete",
) -> GradientFlow:
    """Returns the flow whose solution is `num_steps` steps of gradient descent.

    Raises:
        UsageError: if `step_size` is not above 0 or `num_steps` is below 1.
    """
    if num_steps < 1:
        raise UsageError(f"Expected num_steps to be at least 1, got {num_steps}.")
    solver = GradientDescent(step_size)
    return GradientFlow(
        final_time=step_size * num_steps,
        solver=solver,
        proximal_weight=proximal_weight,
        max_checkpoints=max_checkpoints,
        adjoint=adjoint,
    )


@REGISTRY.register("maml")
class MAML(AdjointMAML):
    """Model-agnostic meta-learning: differentiates through the steps of gradient descent.

    The meta-gradient is exact, and the graph does not grow with the number of steps.

    Args:
        step_size: learning rate of the inner steps, > 0.
        num_steps: inner steps, >= 1.
        max_checkpoints: number of states that are kept in memory, see `GradientFlow`.
        adjoint: "discrete" (default), or "unrolled" to keep the activations of every step, which
            is faster for few steps of a large model. See `GradientFlow`.

    Reference:
        Finn, Abbeel, Levine, "Model-agnostic meta-learning for fast adaptation of deep networks",
        ICML 2017.
    """

    def __init__(
        self,
        step_size: float = 0.01,
        num_steps: int = 5,
        max_checkpoints: int | None = None,
        adjoint: str = "discrete",
    ) -> None:
        super().__init__(
            gradient_descent_flow(
                step_size, num_steps, max_checkpoints=max_checkpoints, adjoint=adjoint
            )
        )
