"""The inner training run as an ODE: the vector field of a support loss, and its solution."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import tensorflow as tf
import tensorflow_probability as tfp

from amaml_tf import solvers
from amaml_tf.adjoint import Adjoint, continuous_adjoint, discrete_adjoint
from amaml_tf.functional import FunctionalModel
from amaml_tf.segments import most_stages
from amaml_tf.solvers.adopt import as_one_step, solve_on_grid
from amaml_tf.solvers.integrate import Solution, integrate, num_fixed_steps
from amaml_tf.solvers.one_step import OneStepSolver
from amaml_tf.solvers.system import System

ADJOINTS = ("discrete", "continuous", "backsolve")
LEARNED_RATES = ("none", "tensor", "entry")
ON_FAILURE = ("raise", "drop")

# Default size of one buffer of states, in bytes, and its bounds in states.
_BUFFER_BYTES = 2**27
_FEWEST_CHECKPOINTS, _MOST_CHECKPOINTS = 16, 4096


class Constants(NamedTuple):
    """What the vector field holds constant, each `[B, ...]`, of width 0 where there is none.

    Attributes:
        held: `[B, Q]`, trainable parameters that are not adapted.
        rates: `[B, P]` or `[B, 1]`, learned rates that multiply the gradient.
        anchor: `[B, P]`, where the proximal term pulls to: the initialization.
    """

    held: tf.Tensor
    rates: tf.Tensor
    anchor: tf.Tensor


@dataclasses.dataclass(frozen=True, kw_only=True)
class GradientFlow:
    """Training as a gradient flow: how long, by which solver, and how it is differentiated.

    For the support loss L_S of a task the parameters u follow

        du/dt = -∇L_S(u),    u(0) = θ,    t in [0, final_time]

    One step of gradient descent with rate α is one Euler step: N of them describe the same
    trajectory as `final_time = N α`.

    The tolerances of an adaptive solver are relative to how far a task has come: the local error
    of a step may be `rtol` times the distance |u - θ|, plus `atol`, each as the root mean square
    of its entries (see `relative_to_displacement`).

    Args:
        final_time: T, > 0, in units of time: learning rate times number of steps. Default 5.
        solver: a `tfp.math.ode.Solver`. Default `RungeKuttaChebyshev()`: made for the stiff, real
            spectrum of a gradient flow. `tfp.math.ode.DormandPrince` is taken as the method of
            the same name in `amaml_tf.solvers`; other TFP solvers (BDF) allow only the adjoints
            "continuous" and "backsolve".
        adjoint: "discrete" (default) differentiates the solver's own steps, exactly;
            "continuous" solves the adjoint ODE of the paper over the stored trajectory;
            "backsolve" is TFP's own gradient, which integrates the flow backwards and fails on
            long runs: for comparison only.
        adjoint_solver: for the adjoint ODE of "continuous", with its own tolerances; None takes
            `solver`, or `RungeKuttaChebyshev()` where that cannot be.
        max_checkpoints: states that each of the (at most three) buffers of a run holds; a power
            of two. None: as many as fit 128 MiB, between 16 and 4096, and enough for the solver's
            cap on steps; for fixed steps that do not fit, the fewest that will do. A buffer of K
            states serves runs of up to K² steps; those that do not fit are recomputed once in the
            backward pass.
        learn_final_time: make T a meta-parameter, learned as log T from `final_time` on.
        max_final_time: how far a learned T may grow, at least `final_time`. Where longer runs go on
            improving, a T without this bound makes every meta-update slower than the last. Default:
            no bound.
        learned_rates: "none" (default), or rates that multiply the gradient, learned in log space
            from 1 on: one per "tensor" or one per "entry" (Meta-SGD in continuous time).
        proximal_weight: w >= 0 of a term w/2 |u - θ|² added to L_S. Default 0.
        on_failure: what becomes of a task whose flow does not arrive (non-finite values, too many
            or too small steps): "raise" an error (default), or "drop" the task from losses and
            meta-gradients and count it.

    Raises:
        ValueError: if an argument is out of its range, or solver and adjoint do not go together.

    Reference:
        Li, Wang, Narayan, Kirby, Zhe, "Meta-Learning with Adjoint Methods", AISTATS 2023.
    """

    final_time: float = 5.0
    solver: tfp.math.ode.Solver = dataclasses.field(default_factory=solvers.RungeKuttaChebyshev)
    adjoint: str = "discrete"
    adjoint_solver: tfp.math.ode.Solver | None = None
    max_checkpoints: int | None = None
    learn_final_time: bool = False
    max_final_time: float | None = None
    learned_rates: str = "none"
    proximal_weight: float = 0.0
    on_failure: str = "raise"

    def __post_init__(self) -> None:
        if not self.final_time > 0:
            raise ValueError(f"Expected final_time to be above 0, got {self.final_time}.")
        if not self.proximal_weight >= 0:
            raise ValueError(f"Expected proximal_weight to be >= 0, got {self.proximal_weight}.")
        for name, choices in (
            ("adjoint", ADJOINTS),
            ("learned_rates", LEARNED_RATES),
            ("on_failure", ON_FAILURE),
        ):
            value = getattr(self, name)
            if value not in choices:
                raise ValueError(f"Expected {name} to be one of {choices}, got {value!r}.")
        self._check_max_final_time()
        k = self.max_checkpoints
        if k is not None and (k < 2 or k & (k - 1)):
            raise ValueError(f"Expected max_checkpoints to be a power of two >= 2, got {k}.")
        if not isinstance(self.solver, tfp.math.ode.Solver):
            raise ValueError(
                f"Expected solver to be a tfp.math.ode.Solver, got {self.solver!r}. Those of "
                "amaml_tf.solvers are."
            )
        object.__setattr__(self, "solver", as_one_step(self.solver))
        if self.adjoint == "discrete" and not isinstance(self.solver, OneStepSolver):
            raise ValueError(
                f"Expected a solver of amaml_tf.solvers for adjoint='discrete', got "
                f"{type(self.solver).__name__}, whose steps cannot be differentiated. Use "
                "adjoint='continuous'."
            )
        fixed = isinstance(self.solver, OneStepSolver) and not self.solver.adaptive
        if self.learn_final_time and fixed and self.solver.max_num_steps is None:
            raise ValueError(
                f"Expected {type(self.solver).__name__} to have a cap on its steps where the "
                "final time is learned, got max_num_steps=None. Give it max_num_steps."
            )

    def _check_max_final_time(self) -> None:
        longest = self.max_final_time
        if longest is None:
            return
        if not self.learn_final_time:
            raise ValueError(
                f"Expected learn_final_time with max_final_time={longest}, which bounds a learned "
                "T; set it, or leave max_final_time out."
            )
        if not longest >= self.final_time:
            raise ValueError(
                f"Expected max_final_time to be at least the final_time {self.final_time} that "
                f"learning starts from, got {longest}."
            )

    def solve(
        self, system: System, initial_state: tf.Tensor, final_time: Any, *, record: bool
    ) -> Solution:
        """Integrates `system` from `initial_state` `[B, P]` to `final_time` (scalar).

        `record` keeps the trajectory for `adjoint_of`.
        """
        capacity = self._capacity(initial_state)
        if not isinstance(self.solver, OneStepSolver):
            return solve_on_grid(self.solver, system, final_time, initial_state, capacity)
        return integrate(
            self._bounded_solver(capacity),
            system._replace(error_ratio=relative_to_displacement(initial_state)),
            0.0,
            final_time,
            initial_state,
            max_num_steps=self._max_num_steps(),
            capacity=capacity if record else None,
        )

    def adjoint_of(
        self, system: System, solution: Solution, cotangent: tf.Tensor, constants: Constants
    ) -> Adjoint:
        """Pulls `cotangent` `[B, P]`, of u(T), back through a recorded `solution`."""
        zeros = tuple(tf.zeros_like(constant) for constant in constants)
        solver = self._bounded_solver(self._capacity(cotangent))
        if self.adjoint == "discrete":
            return discrete_adjoint(solver, system, solution.trajectory, cotangent, zeros)
        adjoint_solver = self.adjoint_solver or self.solver
        if not isinstance(adjoint_solver, OneStepSolver):
            adjoint_solver = solvers.RungeKuttaChebyshev()
        cap = adjoint_solver.max_num_steps or tf.int32.max
        return continuous_adjoint(
            solver, system, solution.trajectory, cotangent, zeros, adjoint_solver, cap
        )

    def _max_num_steps(self) -> int:
        if self.solver.max_num_steps is not None:
            return self.solver.max_num_steps
        return num_fixed_steps(self.solver.step_size, float(self.final_time))

    def _bounded_solver(self, capacity: int) -> Any:
        """The solver, with steps of at most `capacity` evaluations, so that a buffer holds one."""
        if isinstance(self.solver, solvers.RungeKuttaChebyshev):
            return self.solver.with_max_num_stages(capacity)
        return self.solver

    def _capacity(self, state: tf.Tensor) -> int:
        """Rows of the buffers of a run: a power of two."""
        one_step = isinstance(self.solver, OneStepSolver)
        steps = self._max_num_steps() if one_step else _FEWEST_CHECKPOINTS
        needed = _power_of_two_from(steps**0.5)
        if self.max_checkpoints is not None:
            if self.max_checkpoints < needed:
                raise ValueError(
                    f"Expected max_checkpoints to be at least {needed}, the root of the "
                    f"{steps} steps that the solver may take, got {self.max_checkpoints}. Give "
                    "more checkpoints, or the solver a lower max_num_steps."
                )
            return self.max_checkpoints
        row_bytes = max(state.shape.num_elements() or 1, 1) * state.dtype.size
        affordable = _BUFFER_BYTES // row_bytes
        fitting = min(max(affordable, _FEWEST_CHECKPOINTS), _MOST_CHECKPOINTS)
        fitting = 1 << (fitting.bit_length() - 1)
        everything = _power_of_two_from(steps * most_stages(self.solver))
        if one_step and self.solver.max_num_steps is None and everything > fitting:
            # All of it will be recomputed: more rows than that takes would gain nothing.
            return max(needed, _FEWEST_CHECKPOINTS)
        return max(min(fitting, everything), needed)


def relative_to_displacement(
    start: tf.Tensor,
) -> Callable[[tf.Tensor, tf.Tensor, tf.Tensor, float, float], tf.Tensor]:
    """Returns a `System.error_ratio` that compares errors with the way from `start` `[B, P]`.

    What a task learns is u - θ. Measured by it, the early steps, on which the meta-gradient hangs
    most, are taken more carefully than with tolerances relative to u itself, and the late ones of
    a long run less: for the same number of gradients the meta-gradients are better at every T
    (`docs/numerics.md` has the numbers).
    """

    def size(vector: tf.Tensor) -> tf.Tensor:
        return tf.sqrt(tf.reduce_mean(tf.square(vector), axis=-1))

    def error_ratio(
        error: tf.Tensor, state: tf.Tensor, new_state: tf.Tensor, rtol: float, atol: float
    ) -> tf.Tensor:
        displacement = tf.maximum(size(state - start), size(new_state - start))
        return size(error) / (atol + rtol * displacement)

    return error_ratio


def _power_of_two_from(number: float) -> int:
    power = 2
    while power < number:
        power *= 2
    return power


def vector_field(
    function: FunctionalModel,
    state: list[tf.Tensor],
    support: tuple[Any, Any],
    constants: Constants,
    proximal_weight: float = 0.0,
) -> System:
    """Returns du/dt = -rates (∇L_S(u) + w (u - anchor)) of a batch of tasks.

    Args:
        function: model and loss.
        state: values of the model's non-trainable variables, the same during the whole solve.
        support: (x, y), task axis first.
        constants: see `Constants`.
        proximal_weight: w.

    Returns:
        A `System` whose `vjp` gives Hessian-vector products of L_S, and the cotangents of the
        three constants.
    """
    x, y = support
    held, rates, anchor = constants
    has_rates, has_anchor = rates.shape[-1] != 0, anchor.shape[-1] != 0

    def scaled(vector: tf.Tensor) -> tf.Tensor:
        return rates * vector if has_rates else vector

    def pulled(u: tf.Tensor, gradient: tf.Tensor) -> tf.Tensor:
        return gradient + proximal_weight * (u - anchor) if has_anchor else gradient

    def derivative(time: tf.Tensor, u: tf.Tensor) -> tf.Tensor:
        del time
        return -scaled(pulled(u, function.gradient(u, held, state, x, y)))

    def vjp(
        time: tf.Tensor, u: tf.Tensor, cotangent: tf.Tensor
    ) -> tuple[tf.Tensor, tuple[tf.Tensor, ...]]:
        del time
        direction = -scaled(cotangent)
        gradient, hessian, mixed = function.curvature(u, held, state, x, y, direction)
        rates_bar = rates
        if has_rates:
            rates_bar = -pulled(u, gradient) * cotangent
            if rates.shape[-1] == 1:
                rates_bar = tf.reduce_sum(rates_bar, axis=-1, keepdims=True)
        anchor_bar = anchor
        if has_anchor:
            anchor_bar = -proximal_weight * direction
            hessian += proximal_weight * direction
        return hessian, (mixed, rates_bar, anchor_bar)

    def second_derivative(time: tf.Tensor, u: tf.Tensor, slope: tf.Tensor) -> tf.Tensor:
        del time
        _, hessian, _ = function.curvature(u, held, state, x, y, slope)
        return -scaled(hessian + proximal_weight * slope if has_anchor else hessian)

    return System(
        derivative, lambda time, u, vector: vjp(time, u, vector)[0], vjp, second_derivative
    )
