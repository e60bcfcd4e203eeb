"""The Dormand-Prince 5(4) solver."""

from __future__ import annotations

import numpy as np

from amaml_tf.solvers.explicit_runge_kutta import ExplicitRungeKutta
from amaml_tf.solvers.step_size_control import StepSizeControl
from amaml_tf.solvers.tfp_solver import REGISTRY, AdjointSolverFn, OneStepSolver


@REGISTRY.register("dormand_prince")
class DormandPrince(StepSizeControl, ExplicitRungeKutta):
    """Dormand-Prince 5(4): order 5, adaptive, six evaluations per step; for non-stiff problems.

    The method and the options are those of `tfp.math.ode.DormandPrince`, with two differences. The
    cap on the steps always holds, also under XLA, where TFP's own solver can loop forever. Each
    problem of a batch has its own step size. A gradient flow is stiff when its run is long: see
    `RungeKuttaChebyshev`.

    Args:
        rtol: relative tolerance, > 0. Default 1e-3.
        atol: absolute tolerance, > 0. Default 1e-6.
        first_step_size: the first step to try. Default 1e-3.
        safety_factor: in (0, 1]. Default 0.9.
        min_step_size_factor: in (0, 1). Default 0.1.
        max_step_size_factor: > 1. Default 10.
        max_num_steps: cap on the attempted steps of a solve. Default 16384.
        make_adjoint_solver_fn: see `tfp.math.ode.Solver`.
        validate_args: see `tfp.math.ode.Solver`.
        name: name of the solver.

    Raises:
        UsageError: if an argument is out of its range.

    Reference:
        Dormand, Prince, "A family of embedded Runge-Kutta formulae", J. Comp. Appl. Math. 6
        (1980) 19-26.
    """

    order = 5
    error_order = 5
    adaptive = True
    a = np.array(
        [
            [0, 0, 0, 0, 0, 0],
            [1 / 5, 0, 0, 0, 0, 0],
            [3 / 40, 9 / 40, 0, 0, 0, 0],
            [44 / 45, -56 / 15, 32 / 9, 0, 0, 0],
            [19372 / 6561, -25360 / 2187, 64448 / 6561, -212 / 729, 0, 0],
            [9017 / 3168, -355 / 33, 46732 / 5247, 49 / 176, -5103 / 18656, 0],
        ]
    )
    b = np.array([35 / 384, 0, 500 / 1113, 125 / 192, -2187 / 6784, 11 / 84])
    # b minus the weights of the embedded method of order 4
    error_weights = np.array(
        [71 / 57600, 0, -71 / 16695, 71 / 1920, -17253 / 339200, 22 / 525, -1 / 40]
    )

    def __init__(
        self,
        rtol: float = 1e-3,
        atol: float = 1e-6,
        first_step_size: float = 1e-3,
        safety_factor: float = 0.9,
        min_step_size_factor: float = 0.1,
        max_step_size_factor: float = 10.0,
        max_num_steps: int = 16384,
        make_adjoint_solver_fn: AdjointSolverFn | None = None,
        validate_args: bool = False,
        name: str = "dormand_prince",
    ) -> None:
        OneStepSolver.__init__(
            self,
            make_adjoint_solver_fn=make_adjoint_solver_fn,
            validate_args=validate_args,
            name=name,
        )
        StepSizeControl.__init__(
            self,
            rtol=rtol,
            atol=atol,
            first_step_size=first_step_size,
            safety_factor=safety_factor,
            min_step_size_factor=min_step_size_factor,
            max_step_size_factor=max_step_size_factor,
            max_num_steps=max_num_steps,
        )
