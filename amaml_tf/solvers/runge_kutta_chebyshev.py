"""The stabilised explicit solver RKC2, for the real, negative spectrum of gradient flows."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import NamedTuple

import tensorflow as tf

from amaml_tf.errors import UsageError
from amaml_tf.solvers.chebyshev_coefficients import (
    Coefficients,
    Table,
    coefficients,
    stage_time,
)
from amaml_tf.solvers.method import Memory, Step
from amaml_tf.solvers.power_iteration import power_iteration
from amaml_tf.solvers.state_stack import Rows
from amaml_tf.solvers.step_size_control import StepSizeControl
from amaml_tf.solvers.system import System
from amaml_tf.solvers.tfp_solver import REGISTRY, AdjointSolverFn, OneStepSolver

_STABILITY = 1.54  # s stages are stable for step_size * radius up to about (s**2 - 1) / 1.54
_RADIUS_SAFETY = 1.2  # power iteration approaches the radius from below


class _Memory(NamedTuple):
    """Per row: the estimated spectral radius, its eigenvector, the steps since the estimate."""

    radius: tf.Tensor
    vector: tf.Tensor
    age: tf.Tensor


@REGISTRY.register("runge_kutta_chebyshev")
class RungeKuttaChebyshev(StepSizeControl, OneStepSolver):
    """The Runge-Kutta-Chebyshev method of order 2, with adaptive step size and number of stages.

    A step of s stages costs s evaluations of f and is stable for `step_size * radius` up to about
    0.65 s**2, where `radius` is the spectral radius of df/dy. The cost of a long run therefore
    grows like the square root of its length; with Euler's or another classical method it grows
    linearly. The eigenvalues of df/dy must lie near the negative real axis, as those of a
    gradient flow do (its Jacobian is minus a Hessian). Do not use it for oscillating systems.

    The radius is estimated by power iteration, which starts from the previous estimate. It is
    estimated again after `refresh_every` accepted steps and after a rejected step.

    Args:
        rtol: relative tolerance, > 0. Default 3e-3: on the networks of the paper, meta-gradients
            are then accurate to one part in a thousand at T = 5, and to one in a hundred at T = 50
            (see `benchmarks.trajectory_length`).
        atol: absolute tolerance, > 0. Default 5e-6.
        first_step_size: the first step to try. None (default): 1 / spectral radius.
        safety_factor: in (0, 1]. Default 0.8.
        min_step_size_factor: in (0, 1). Default 0.1.
        max_step_size_factor: > 1. Default 10.
        max_num_steps: cap on the attempted steps of a solve. Default 4096.
        max_num_stages: cap on the stages of a step, >= 2; steps are shortened to what it allows.
            Default 1000. A `GradientFlow` lowers it to two thirds of the states that it keeps.
        num_stages: a fixed number of stages, >= 2. None (default): it is adaptive.
        refresh_every: accepted steps between two estimates of the radius. Default 3.
        power_iterations: cap on the Jacobian products of one estimate. Default 50.
        make_adjoint_solver_fn: see `tfp.math.ode.Solver`.
        validate_args: see `tfp.math.ode.Solver`.
        name: name of the solver.

    Raises:
        UsageError: if an argument is out of its range.

    Reference:
        Sommeijer, Shampine, Verwer, "RKC: an explicit solver for parabolic PDEs", J. Comp. Appl.
        Math. 88 (1998) 315-326; equation numbers in the code refer to it.
    """

    order = 2
    error_order = 3
    adaptive = True

    def __init__(
        self,
        rtol: float = 3e-3,
        atol: float = 5e-6,
        first_step_size: float | None = None,
        safety_factor: float = 0.8,
        min_step_size_factor: float = 0.1,
        max_step_size_factor: float = 10.0,
        max_num_steps: int = 4096,
        max_num_stages: int = 1000,
        num_stages: int | None = None,
        refresh_every: int = 3,
        power_iterations: int = 50,
        make_adjoint_solver_fn: AdjointSolverFn | None = None,
        validate_args: bool = False,
        name: str = "runge_kutta_chebyshev",
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
        at_least = {
            "max_num_stages": (max_num_stages, 2),
            "num_stages": (2 if num_stages is None else num_stages, 2),
            "refresh_every": (refresh_every, 1),
            "power_iterations": (power_iterations, 1),
        }
        for argument, (value, least) in at_least.items():
            if value < least:
                raise UsageError(f"Expected {argument} to be at least {least}, got {value}.")
        self.max_num_stages = int(num_stages or max_num_stages)
        self.num_stages = num_stages
        self.refresh_every = int(refresh_every)
        self.power_iterations = int(power_iterations)
        self._coefficients: Table | Callable[..., Coefficients] = coefficients

    def bounded(self, max_num_stages: int) -> RungeKuttaChebyshev:
        if self.num_stages is not None or self.max_num_stages <= max_num_stages:
            return self
        bounded = copy.copy(self)
        bounded.max_num_stages = max_num_stages
        return bounded

    def tabulated(self, max_num_stages: int) -> RungeKuttaChebyshev:
        """Returns this method, limited as `bounded`, which reads its coefficients from a table."""
        tabulated = copy.copy(self.bounded(max_num_stages))
        tabulated._coefficients = Table(tabulated.max_num_stages)  # noqa: SLF001 - its own class
        return tabulated

    # -- one step -------------------------------------------------------------------------------

    def step(
        self,
        system: System,
        time: tf.Tensor,
        state: tf.Tensor,
        derivative: tf.Tensor,
        known: tf.Tensor,
        step_size: tf.Tensor,
        num_stages: tf.Tensor,
        rows: Rows | None = None,
        row: tf.Tensor | int = 0,
    ) -> Step:
        h, h_column = step_size, step_size[:, tf.newaxis]

        def stage(
            j: tf.Tensor,
            y: tf.Tensor,
            y_before: tf.Tensor,
            f0: tf.Tensor,
            f: tf.Tensor,
            rows: Rows | tuple[()],
        ) -> tuple[tf.Tensor | Rows | tuple[()], ...]:
            if isinstance(rows, Rows):
                at = tf.where(j > 0, tf.minimum(row + j - 1, rows.last), rows.last)
                rows = rows.write(at, y)
            c = self._coefficients(num_stages, j, state.dtype)
            # Y_j of equations (2.2), (2.3)
            new = (
                (1 - c.mu - c.nu) * state
                + c.mu * y
                + c.nu * y_before
                + h_column * (c.mu_tilde * f + c.gamma_tilde * f0)
            )
            f = system.derivative(time + h * c.c, new)
            return j + 1, new, _copy(y, j), tf.where(j == 0, f, f0), f, rows

        # Stage 0 only evaluates f at the start, if it is not known.
        most = tf.reduce_max(num_stages)
        start = (tf.cast(known, tf.int32), state, state, derivative, derivative)
        _, new_state, _, derivative, new_derivative, written = tf.while_loop(
            lambda j, *_: j <= most,
            stage,
            (*start, () if rows is None else rows),
            maximum_iterations=self.max_num_stages + 1,
        )
        # Equation (2.8), the error of a step
        error = 0.8 * (state - new_state) + 0.4 * h_column * (derivative + new_derivative)
        return Step(new_state, derivative, new_derivative, error, written or None)

    def step_vjp(
        self,
        system: System,
        time: tf.Tensor,
        step_size: tf.Tensor,
        num_stages: tf.Tensor,
        rows: Rows,
        row: tf.Tensor,
        cotangent: tf.Tensor,
        constants: tuple[tf.Tensor, ...],
    ) -> tuple[tf.Tensor, tuple[tf.Tensor, ...]]:
        # The recursion of `step`, backwards. `y_bar` is the cotangent of Y_j, and `pending` is the
        # part of that of Y_{j-1} from Y_{j+1}. Y_0 and F_0 enter every stage: theirs are sums.
        h = step_size[:, tf.newaxis]

        def stage(
            j: tf.Tensor,
            y_bar: tf.Tensor,
            pending: tf.Tensor,
            y0_bar: tf.Tensor,
            f0_bar: tf.Tensor,
            constants: tuple[tf.Tensor, ...],
        ) -> tuple[tf.Tensor | tuple[tf.Tensor, ...], ...]:
            c = coefficients(num_stages, j, cotangent.dtype)
            f_bar = c.mu_tilde * h * y_bar + tf.cast(j == 1, h.dtype) * f0_bar
            at = time + step_size * stage_time(num_stages, j - 1, cotangent.dtype)
            from_f, from_constants = system.vjp(at, rows.read(row + j - 1), f_bar)
            constants = tuple(a + b for a, b in zip(constants, from_constants, strict=True))
            y0_bar += (1 - c.mu - c.nu) * y_bar
            f0_bar += c.gamma_tilde * h * y_bar
            return j - 1, pending + c.mu * y_bar + from_f, c.nu * y_bar, y0_bar, f0_bar, constants

        zero = tf.zeros_like(cotangent)
        _, y_bar, _, y0_bar, _, constants = tf.while_loop(
            lambda j, *_: j >= 1,
            stage,
            (tf.reduce_max(num_stages), cotangent, zero, zero, zero, constants),
            maximum_iterations=self.max_num_stages,
        )
        return y_bar + y0_bar, constants

    # -- step size and number of stages -----------------------------------------------------------

    def initial_memory(self, state: tf.Tensor) -> _Memory:
        # Any vector works that is not orthogonal to an eigenvector. (Random numbers would work
        # too, but XLA takes a second to compute them when it compiles.)
        pattern = tf.sin(tf.range(1, state.shape[1] + 1, dtype=state.dtype) ** 2)
        rows = tf.zeros_like(state[:, 0])
        vector = rows[:, tf.newaxis] + pattern
        return _Memory(rows, vector, tf.zeros_like(rows, tf.int32))

    def refresh(
        self,
        system: System,
        time: tf.Tensor,
        state: tf.Tensor,
        memory: Memory,
        rejected: tf.Tensor,
        active: tf.Tensor,
    ) -> tuple[_Memory, tf.Tensor]:
        radius, vector, age = memory
        wanted = active & (rejected | (age >= self.refresh_every))

        def estimate() -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
            return power_iteration(
                system, time, state, radius, vector, wanted, self.power_iterations
            )

        def keep() -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
            return radius, vector, tf.zeros_like(age)

        new_radius, new_vector, products = tf.cond(tf.reduce_any(wanted), estimate, keep)
        return _Memory(new_radius, new_vector, tf.where(wanted, 1, age + 1)), products

    def limit_step_size(self, memory: Memory, step_size: tf.Tensor, first: tf.Tensor) -> tf.Tensor:
        if self.num_stages is not None:
            return step_size  # the caller is responsible for stability
        reach = ((self.max_num_stages - 1.0) ** 2 - 1) / (_STABILITY * _RADIUS_SAFETY)
        if self.first_step_size is None:
            # All that is known of f so far is how fast it can change.
            reach = tf.where(first, tf.minimum(reach, 1.0), reach)
        reach = tf.cast(reach, step_size.dtype)
        return tf.minimum(step_size, reach / tf.maximum(_Memory(*memory).radius, 1e-30))

    def plan(self, memory: Memory, step_size: tf.Tensor) -> tf.Tensor:
        if self.num_stages is not None:
            return tf.fill(tf.shape(step_size), self.num_stages)
        stiffness = step_size * _RADIUS_SAFETY * _Memory(*memory).radius
        stages = 1 + tf.cast(tf.sqrt(_STABILITY * stiffness + 1), tf.int32)
        return tf.clip_by_value(stages, 2, self.max_num_stages)

    def spectral_radius(self, memory: Memory, like: tf.Tensor) -> tf.Tensor:
        del like
        return _Memory(*memory).radius


def _copy(y: tf.Tensor, j: tf.Tensor) -> tf.Tensor:
    """Returns a copy of y, by an operation that no compiler can drop; j >= 0.

    LiteRT overwrites a variable of a loop before it hands it on as another one.
    """
    return tf.where(j < 0, tf.zeros_like(y), y)
