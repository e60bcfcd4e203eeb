"""Base class of the fixed-step solvers."""

from __future__ import annotations

import math

from amaml_tf.errors import UsageError
from amaml_tf.solvers.explicit_runge_kutta import ExplicitRungeKutta
from amaml_tf.solvers.method import MOST_STEPS
from amaml_tf.solvers.tfp_solver import AdjointSolverFn


class FixedStepSolver(ExplicitRungeKutta):
    """An explicit Runge-Kutta method with equal steps.

    Args:
        step_size: length of a step in units of time, > 0. An interval that is not a multiple of it
            is divided into the fewest equal steps that are not longer.
        max_num_steps: cap on the number of steps of a solve. None (default): as many as the
            interval needs, whose length must then be a Python number.
        make_adjoint_solver_fn: see `tfp.math.ode.Solver`.
        validate_args: see `tfp.math.ode.Solver`.
        name: name of the solver.

    Raises:
        UsageError: if `step_size` is not above 0 or `max_num_steps` is below 1.
    """

    adaptive = False

    def __init__(
        self,
        step_size: float,
        max_num_steps: int | None = None,
        make_adjoint_solver_fn: AdjointSolverFn | None = None,
        validate_args: bool = False,
        name: str | None = None,
    ) -> None:
        super().__init__(
            make_adjoint_solver_fn=make_adjoint_solver_fn,
            validate_args=validate_args,
            name=name,
        )
        check_fixed_steps(step_size, max_num_steps)
        self.step_size = float(step_size)
        self.max_num_steps = max_num_steps


def check_fixed_steps(step_size: float, max_num_steps: int | None) -> None:
    """Checks the step and the cap on the steps of a method with equal steps.

    Raises:
        UsageError: if one of them is out of its range.
    """
    if not 0 < step_size < math.inf:
        raise UsageError(f"Expected step_size to be above 0 and finite, got {step_size}.")
    if max_num_steps is not None and not 1 <= max_num_steps <= MOST_STEPS:
        raise UsageError(
            f"Expected max_num_steps to be None or from 1 to {MOST_STEPS}, got {max_num_steps}."
        )
