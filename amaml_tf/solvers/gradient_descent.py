"""Gradient descent as a solver: Euler's method."""

from __future__ import annotations

import numpy as np

from amaml_tf.solvers.fixed_step import FixedStepSolver
from amaml_tf.solvers.tfp_solver import REGISTRY


@REGISTRY.register("gradient_descent")
class GradientDescent(FixedStepSolver):
    """Euler's method, order 1; on a gradient flow, gradient descent with rate `step_size`.

    With the discrete adjoint, its meta-gradient is that of MAML (Finn, Abbeel, Levine, ICML 2017)
    with the same number of inner steps. It is stable while `step_size * radius` is below 2, where
    `radius` is the largest eigenvalue of the Hessian. See `FixedStepSolver` for the arguments.
    """

    order = 1
    a = np.zeros([1, 1])
    b = np.ones([1])
