"""Heun's method."""

from __future__ import annotations

import numpy as np

from amaml_tf.solvers.fixed_step import FixedStepSolver


class Heun(FixedStepSolver):
    """Heun's method (explicit trapezoidal rule), order 2, two evaluations a step.

    See `FixedStepSolver` for the arguments.
    """

    order = 2
    a = np.array([[0.0, 0.0], [1.0, 0.0]])
    b = np.array([0.5, 0.5])
