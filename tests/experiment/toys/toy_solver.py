"""A solver: the Runge-Kutta methods of order 2, by where they evaluate f in a step."""

import numpy as np

from amaml_tf import solvers
from amaml_tf.solvers.fixed_step import FixedStepSolver


@solvers.REGISTRY.register("toy_solver")
class SecondOrder(FixedStepSolver):
    """Midpoint rule for `position` = 1/2, Heun's method for 1."""

    order = 2

    def __init__(self, step_size: float, position: float = 0.5) -> None:
        super().__init__(step_size)
        self.a = np.array([[0, 0], [position, 0]])
        self.b = np.array([1 - 0.5 / position, 0.5 / position])
