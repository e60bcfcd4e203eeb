"""Implicit MAML: meta-gradients from the implicit function theorem."""

from __future__ import annotations

import tensorflow as tf

from amaml_tf.algorithms import conjugate_gradients
from amaml_tf.algorithms.base import REGISTRY
from amaml_tf.algorithms.end_points import EndPointAlgorithm, EndPoints
from amaml_tf.errors import UsageError
from amaml_tf.solvers.diagnostics import COMPLETED, NON_FINITE, AdjointDiagnostics


@REGISTRY.register("implicit_maml")
class ImplicitMAML(EndPointAlgorithm):
    """Learns the initialization to which the solution of each task is pulled.

    A task's solution is u* = argmin L_S(u) + w/2 |u - θ|², which the inner run approximates. The
    implicit function theorem gives the task's meta-gradient g, without the path of the run, from

        (I + H_S(u*) / (w + damping)) g = ∇L_Q(u*),    H_S = ∇²L_S

    which is solved by conjugate gradients. With `cg_damping` 0, g is exact up to the errors of u*
    and of this solution. If the matrix is not positive along the first direction, g is ∇L_Q(u*), as
    in FirstOrderMAML. `diagnostics.backward` counts the Hessian-vector products; its growth is
    |g| / |∇L_Q|.

    Args:
        step_size: learning rate of the inner steps, > 0. Default 0.1: with the other defaults, a
            step reduces the distance to u* by a factor of 0.8 or less, all steps to 3%.
        num_steps: inner steps, >= 1. Default 16, as in the paper (5-way Omniglot).
        proximal_weight: w > 0. Default 2, as in the paper.
        num_cg_steps: cap on the steps of conjugate gradients, >= 1. Default 5, as in the paper.
        cg_damping: >= 0, improves the condition of the matrix, but changes g. Default 0.

    Raises:
        UsageError: if an argument is out of its range.

    Reference:
        Rajeswaran, Finn, Kakade, Levine, "Meta-learning with implicit gradients", NeurIPS 2019.
    """

    def __init__(
        self,
        step_size: float = 0.1,
        num_steps: int = 16,
        proximal_weight: float = 2.0,
        num_cg_steps: int = 5,
        cg_damping: float = 0.0,
    ) -> None:
        if not proximal_weight > 0:
            raise UsageError(
                f"Expected proximal_weight to be above 0, got {proximal_weight}: without the pull "
                "to the initialization, a task's solution does not depend on it. Use MAML instead."
            )
        if num_cg_steps < 1:
            raise UsageError(f"Expected num_cg_steps to be at least 1, got {num_cg_steps}.")
        if not cg_damping >= 0:
            raise UsageError(f"Expected cg_damping to be >= 0, got {cg_damping}.")
        super().__init__(step_size, num_steps, proximal_weight=proximal_weight)
        self.num_cg_steps = num_cg_steps
        self.cg_damping = cg_damping

    def task_gradients(self, ends: EndPoints) -> tuple[tf.Tensor, AdjointDiagnostics]:
        weight = self.flow.proximal_weight + self.cg_damping

        def product(vector: tf.Tensor) -> tf.Tensor:
            return vector + ends.hessian_product(vector) / weight

        gradients, num_products = conjugate_gradients.solve(
            product, ends.query_gradients, self.num_cg_steps
        )
        finite = tf.reduce_all(tf.math.is_finite(gradients), axis=-1)
        backward = AdjointDiagnostics(
            status=tf.where(finite, COMPLETED, NON_FINITE),
            num_evaluations=tf.zeros_like(num_products),
            num_vector_jacobian_products=num_products,
            growth=tf.math.divide_no_nan(
                tf.norm(gradients, axis=-1), tf.norm(ends.query_gradients, axis=-1)
            ),
        )
        return gradients, backward
