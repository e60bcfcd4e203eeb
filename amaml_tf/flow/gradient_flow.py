"""The inner training run as an ODE: its final time, its solver and its adjoint."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable

import tensorflow as tf
import tensorflow_probability as tfp

from amaml_tf.aliases import Scalar
from amaml_tf.configurable import Configurable
from amaml_tf.errors import UsageError
from amaml_tf.flow.adjoint import Adjoint, continuous_adjoint, discrete_adjoint
from amaml_tf.flow.buffers import capacity_of, refuse_too_many
from amaml_tf.flow.unrolled import unroll, unrolled_adjoint
from amaml_tf.flow.vector_field import Constants, relative_to_displacement
from amaml_tf.solvers.adopt import as_one_step, solve_on_grid
from amaml_tf.solvers.fixed_step import FixedStepSolver
from amaml_tf.solvers.loop import integrate
from amaml_tf.solvers.method import Method
from amaml_tf.solvers.runge_kutta_chebyshev import RungeKuttaChebyshev
from amaml_tf.solvers.solution import Solution, num_fixed_steps
from amaml_tf.solvers.system import System
from amaml_tf.solvers.tfp_solver import OneStepSolver

ADJOINTS = ("discrete", "continuous", "backsolve", "unrolled")
# The graph of an unrolled run grows with its steps, and so does the time to trace and compile it.
_MOST_UNROLLED_STEPS = 200


@dataclasses.dataclass(frozen=True, kw_only=True)
class GradientFlow(Configurable):
    """Training on a task as a gradient flow: its final time, its solver and its adjoint.

    For the support loss L_S of a task, the parameters u follow

        du/dt = -∇L_S(u),    u(0) = θ,    t in [0, final_time]

    One step of gradient descent with rate α is one Euler step: N of them describe the same
    trajectory as `final_time = N α`.

    The tolerances of an adaptive solver are relative to the distance from the initialization: the
    local error of a step may be at most `rtol` |u - θ| + `atol`. The norm of the error and |u - θ|
    are root mean squares of the entries (see `relative_to_displacement`).

    Args:
        final_time: T, > 0, in units of time: learning rate times number of steps. Default 5.
        solver: a `tfp.math.ode.Solver`. Default `RungeKuttaChebyshev()`, made for the stiff, real
            spectrum of a gradient flow. `tfp.math.ode.DormandPrince` is replaced by the solver of
            the same name in `amaml_tf.solvers`. Other TFP solvers (BDF) allow only the adjoints
            "continuous" and "backsolve".
        adjoint: "discrete" (default) is the exact derivative of the solver's own steps;
            "continuous" solves the adjoint ODE of the paper over the stored trajectory;
            "backsolve" is TFP's own gradient, which integrates the flow backwards and fails on
            long runs. Use "backsolve" only for comparison. "unrolled" has the results of
            "discrete", for few fixed steps of a large model: it keeps the activations of every
            step, and computes none again. It takes neither `max_checkpoints` nor `memory_budget`.
        adjoint_solver: solver of the adjoint ODE of "continuous", with its own tolerances. None
            (default): `solver`, or `RungeKuttaChebyshev()` if `solver` is a solver of TFP.
        max_checkpoints: number of states of all tasks together that a run keeps in memory, more
            than a step has stages. A run that evaluates more gradients than these computes states
            again in the backward pass: with K states none more than twice up to about K² / 2
            gradients, about three times up to 2 K². None (default): 8 MiB of states, at least 13;
            for fixed steps, whose number is known, all states if they fit into 128 MiB, else
            as many as it takes to compute none more than twice.
        memory_budget: the same in MiB, in place of `max_checkpoints`. A solver and its adjoint
            need about 12 states more to work with, and the model what it needs for its gradient.
            Default None.
        proximal_weight: w >= 0, for a term w/2 |u - θ|² added to L_S. Default 0.

    Raises:
        UsageError: if an argument is out of its range, or does not fit the others.

    Reference:
        Li, Wang, Narayan, Kirby, Zhe, "Meta-Learning with Adjoint Methods", AISTATS 2023.
    """

    final_time: float = 5.0
    solver: tfp.math.ode.Solver = dataclasses.field(default_factory=RungeKuttaChebyshev)
    adjoint: str = "discrete"
    adjoint_solver: tfp.math.ode.Solver | None = None
    max_checkpoints: int | None = None
    memory_budget: float | None = None
    proximal_weight: float = 0.0

    def __post_init__(self) -> None:
        if not 0 < self.final_time < math.inf:
            raise UsageError(
                f"Expected final_time to be above 0 and finite, got {self.final_time}."
            )
        if not 0 <= self.proximal_weight < math.inf:
            raise UsageError(
                f"Expected proximal_weight to be >= 0 and finite, got {self.proximal_weight}."
            )
        if self.adjoint not in ADJOINTS:
            raise UsageError(f"Expected adjoint to be one of {ADJOINTS}, got {self.adjoint!r}.")
        k, budget = self.max_checkpoints, self.memory_budget
        if k is not None and k < 2:
            raise UsageError(f"Expected max_checkpoints to be at least 2, got {k}.")
        if budget is not None and not budget > 0:
            raise UsageError(f"Expected memory_budget to be above 0 MiB, got {budget}.")
        if k is not None and budget is not None:
            raise UsageError(
                f"Expected max_checkpoints or memory_budget, got both ({k} and {budget}); they say "
                "the same in states and in MiB, leave one of them out."
            )
        if not isinstance(self.solver, tfp.math.ode.Solver):
            raise UsageError(
                f"Expected solver to be a tfp.math.ode.Solver, got {self.solver!r}. Use one "
                "of amaml_tf.solvers."
            )
        object.__setattr__(self, "solver", as_one_step(self.solver))
        if self.adjoint == "discrete" and not isinstance(self.solver, OneStepSolver):
            raise UsageError(
                f"Expected a solver of amaml_tf.solvers for adjoint='discrete', got "
                f"{type(self.solver).__name__}, whose steps cannot be differentiated. Use "
                "adjoint='continuous'."
            )
        if isinstance(self.solver, OneStepSolver) and not self.solver.adaptive:
            num_fixed_steps(self.solver.step_size, float(self.final_time))  # refuses too many
        if self.adjoint == "unrolled":
            self._check_unrolled()

    def _check_unrolled(self) -> None:
        if not isinstance(self.solver, FixedStepSolver):
            raise UsageError(
                "Expected a solver with fixed steps for adjoint='unrolled', got "
                f"{type(self.solver).__name__}. Use GradientDescent, or adjoint='discrete'."
            )
        steps = self.max_num_steps
        if steps is None or steps > _MOST_UNROLLED_STEPS:
            raise UsageError(
                f"Expected at most {_MOST_UNROLLED_STEPS} steps for adjoint='unrolled', whose "
                f"graph grows with them, got {steps}. Use adjoint='discrete'."
            )
        for name in ("max_checkpoints", "memory_budget"):
            if getattr(self, name) is not None:
                raise UsageError(
                    f"Expected no {name} with adjoint='unrolled', which keeps everything, got "
                    f"{getattr(self, name)}. Leave it out, or use adjoint='discrete'."
                )

    @property
    def max_num_steps(self) -> int | None:
        """Cap on the steps of a solve; None for solvers of TFP, which count steps differently."""
        if not isinstance(self.solver, OneStepSolver):
            return None
        if self.solver.max_num_steps is not None:
            return self.solver.max_num_steps
        return num_fixed_steps(self.solver.step_size, float(self.final_time))

    def solve(
        self, system: System, initial_state: tf.Tensor, final_time: Scalar, *, record: bool
    ) -> Solution:
        """Integrates `system` from `initial_state` `[B, P]` to `final_time` (scalar, or `[B]`).

        With `record`, the trajectory is kept for `adjoint_of`.
        """
        capacity = self._capacity(initial_state, system.copies)
        if record:
            refuse_too_many(capacity, initial_state, system.copies)
        max_num_steps = self.max_num_steps
        if max_num_steps is None:
            return solve_on_grid(self.solver, system, final_time, initial_state, capacity)
        return integrate(
            self._bounded_solver(capacity),
            system._replace(error_ratio=relative_to_displacement(initial_state)),
            0.0,
            final_time,
            initial_state,
            max_num_steps=max_num_steps,
            capacity=capacity if record else None,
        )

    def solve_with_adjoint(
        self, system: System, initial_state: tf.Tensor, final_time: Scalar, constants: Constants
    ) -> tuple[Solution, Callable[[tf.Tensor], Adjoint]]:
        """Returns what `solve` returns, and `adjoint_of` as a function of the cotangent of u(T)."""
        if self.adjoint != "unrolled":
            solution = self.solve(system, initial_state, final_time, record=True)
            return solution, lambda bar: self.adjoint_of(system, solution, bar, constants)
        steps = self.max_num_steps or 0
        solution, tapes = unroll(self.solver, system, initial_state, final_time, steps, constants)
        return solution, lambda bar: unrolled_adjoint(tapes, bar)

    def adjoint_of(
        self, system: System, solution: Solution, cotangent: tf.Tensor, constants: Constants
    ) -> Adjoint:
        """Returns the `Adjoint` of a recorded `solution` for `cotangent` `[B, P]`, that of u(T)."""
        zeros = tuple(tf.zeros_like(constant) for constant in constants)
        solver = self._bounded_solver(self._capacity(cotangent, system.copies))
        trajectory = solution.recorded
        if self.adjoint == "discrete":
            return discrete_adjoint(solver, system, trajectory, cotangent, zeros)
        adjoint_solver = self.adjoint_solver or self.solver
        if not isinstance(adjoint_solver, OneStepSolver):
            adjoint_solver = RungeKuttaChebyshev()
        cap = adjoint_solver.max_num_steps or tf.int32.max
        return continuous_adjoint(solver, system, trajectory, cotangent, zeros, adjoint_solver, cap)

    def _capacity(self, state: tf.Tensor, copies: int) -> int:
        return capacity_of(
            self.solver, self.max_num_steps, self.max_checkpoints, self.memory_budget, state, copies
        )

    def _bounded_solver(self, capacity: int) -> Method | tfp.math.ode.Solver:
        """Returns the solver, with steps that leave a third of the states for checkpoints."""
        if not isinstance(self.solver, Method):
            return self.solver
        return self.solver.bounded(max(2 * capacity // 3, 2))
