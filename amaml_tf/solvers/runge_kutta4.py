"""The classical Runge-Kutta method, a fixed-step solver of order 4."""

from __future__ import annotations

import numpy as np

from amaml_tf.solvers.fixed_step import FixedStepSolver
from amaml_tf.solvers.tfp_solver import REGISTRY


@REGISTRY.register("runge_kutta4")
class RungeKutta4(FixedStepSolver):
    """The classical Runge-Kutta method, order 4, four evaluations per step.

    See `FixedStepSolver` for the arguments.
    """

    order = 4
    a = np.array([[0, 0, 0, 0], [1 / 2, 0, 0, 0], [0, 1 / 2, 0, 0], [0, 0, 1, 0]])
    b = np.array([1 / 6, 1 / 3, 1 / 3, 1 / 6])
