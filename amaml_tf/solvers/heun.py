"""Heun's method, a fixed-step solver of order 2."""

from __future__ import annotations

import numpy as np

from amaml_tf.solvers.fixed_step import FixedStepSolver
from amaml_tf.solvers.tfp_solver import REGISTRY


@REGISTRY.register("heun")
class Heun(FixedStepSolver):
    """Heun's method (explicit trapezoidal rule), order 2, two evaluations per step.

    See `FixedStepSolver` for the arguments.
    """

    order = 2
    a = np.array([[0.0, 0.0], [1.0, 0.0]])
    b = np.array([0.5, 0.5])
