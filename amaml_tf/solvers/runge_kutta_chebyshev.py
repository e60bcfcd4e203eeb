"""The stabilised explicit solver RKC2, made for the real, negative spectrum of a gradient flow."""

from __future__ import annotations

import copy
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

from amaml_tf.solvers.one_step import OneStepSolver, Step
from amaml_tf.solvers.step_size_control import StepSizeControl
from amaml_tf.solvers.system import System

_DAMPING = 2.0 / 13.0  # epsilon of the paper
_STABILITY = 1.54  # s stages are stable for step_size * radius up to about (s**2 - 1) / 1.54
_RADIUS_SAFETY = 1.2  # power iteration approaches the radius from below


class _Memory(NamedTuple):
    """Per row: estimate of the spectral radius, its eigenvector, steps since the estimate."""

    radius: tf.Tensor
    vector: tf.Tensor
    age: tf.Tensor


class RungeKuttaChebyshev(StepSizeControl, OneStepSolver):
    """Second-order Runge-Kutta-Chebyshev with adaptive step size and number of stages.

    A step of s stages costs s evaluations of f and is stable for `step_size * radius` up to about
    0.65 s**2, where `radius` is the spectral radius of df/dy: the cost of a long run grows like
    the square root of its length, where that of Euler's or another classical method grows
    linearly. The eigenvalues of df/dy must lie near the negative real axis, as those of a
    gradient flow do (its Jacobian is minus a Hessian). Do not use it for oscillating systems.

    The radius is estimated by power iteration, warm-started from the estimate before, anew after
    `refresh_every` accepted steps and after a rejected step.

    Args:
        rtol: relative tolerance, > 0. Default 3e-3: on the networks of the paper this makes
            meta-gradients right to a part in a thousand at T = 5, and to one in a hundred at T = 50
            (see `benchmarks.trajectory_length`).
        atol: absolute tolerance, > 0. Default 5e-6.
        first_step_size: the first step to try; None takes 1 / spectral radius.
        safety_factor: in (0, 1]. Default 0.8.
        min_step_size_factor: in (0, 1). Default 0.1.
        max_step_size_factor: > 1. Default 10.
        max_num_steps: cap on the attempted steps of a solve. Default 4096.
        max_num_stages: cap on the stages of a step, at least 2; steps are cut to what it allows.
            Default 1000. A `GradientFlow` lowers it to the size of its buffers.
        num_stages: a fixed number of stages, at least 2, in place of the adaptive one. None.
        refresh_every: accepted steps between two estimates of the radius. Default 3.
        power_iterations: most products with the Jacobian in one estimate. Default 50.
        make_adjoint_solver_fn: see `tfp.math.ode.Solver`.
        validate_args: see `tfp.math.ode.Solver`.
        name: of the solver.

    Raises:
        ValueError: if an argument is out of its range.

    Reference:
        Sommeijer, Shampine, Verwer, "RKC: an explicit solver for parabolic PDEs", J. Comp. Appl.
        Math. 88 (1998) 315-326; equation numbers in the code are of that paper.
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
        make_adjoint_solver_fn: Any = None,
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
                raise ValueError(f"Expected {argument} to be at least {least}, got {value}.")
        self.max_num_stages = int(max_num_stages)
        self.num_stages = num_stages
        self.refresh_every = int(refresh_every)
        self.power_iterations = int(power_iterations)

    def with_max_num_stages(self, most: int) -> RungeKuttaChebyshev:
        """Returns this solver, with at most `most` stages in a step."""
        if self.max_num_stages <= most:
            return self
        bounded = copy.copy(self)
        bounded.max_num_stages = most
        return bounded

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
        points: Any = None,
        offset: Any = 0,
    ) -> Step:
        recording = points is not None
        last_point = tf.cast(points.size(), tf.int32) - 1 if recording else 0
        h, h_column = step_size, step_size[:, tf.newaxis]

        def stage(j: Any, y: Any, y_before: Any, f0: Any, f: Any, points: Any) -> tuple[Any, ...]:
            if recording:
                row = tf.where(j > 0, tf.minimum(offset + j - 1, last_point), last_point)
                points = points.write(row, y)
            c = _coefficients(num_stages, j, state.dtype)
            # Y_j of equations (2.2), (2.3)
            new = (
                (1 - c.mu - c.nu) * state
                + c.mu * y
                + c.nu * y_before
                + h_column * (c.mu_tilde * f + c.gamma_tilde * f0)
            )
            f = system.derivative(time + h * c.c, new)
            return j + 1, new, y, tf.where(j == 0, f, f0), f, points

        # Stage 0 only evaluates f at the start, where that is not known.
        most = tf.reduce_max(num_stages)
        _, new_state, _, derivative, new_derivative, points = tf.while_loop(
            lambda j, *_: j <= most,
            stage,
            (
                tf.cast(known, tf.int32),
                state,
                state,
                derivative,
                derivative,
                points if recording else (),
            ),
            maximum_iterations=self.max_num_stages + 1,
        )
        # Equation (2.8) of the error of a step
        error = 0.8 * (state - new_state) + 0.4 * h_column * (derivative + new_derivative)
        points = points if recording else None
        return Step(new_state, derivative, new_derivative, error, points)

    def step_vjp(
        self,
        system: System,
        time: tf.Tensor,
        step_size: tf.Tensor,
        num_stages: tf.Tensor,
        points: tf.Tensor,
        offset: tf.Tensor,
        cotangent: tf.Tensor,
        constants: tuple[tf.Tensor, ...],
    ) -> tuple[tf.Tensor, tuple[tf.Tensor, ...]]:
        # The recursion of `step` read backwards. `y_bar` is the cotangent of Y_j, `pending` what
        # Y_{j+1} owes to Y_{j-1}; Y_0 and F_0, which enter every stage, collect theirs.
        h = step_size[:, tf.newaxis]

        def stage(
            j: Any, y_bar: Any, pending: Any, y0_bar: Any, f0_bar: Any, constants: Any
        ) -> tuple[Any, ...]:
            c = _coefficients(num_stages, j, cotangent.dtype)
            f_bar = c.mu_tilde * h * y_bar + tf.cast(j == 1, h.dtype) * f0_bar
            stage_time = time + step_size * _stage_time(num_stages, j - 1, cotangent.dtype)
            from_f, from_constants = system.vjp(
                stage_time, tf.gather(points, offset + j - 1), f_bar
            )
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
        # Any vector will do that no eigenvector is orthogonal to. (Random numbers would do as
        # well, and take XLA a second to work out when it compiles.)
        pattern = tf.sin(tf.range(1, state.shape[1] + 1, dtype=state.dtype) ** 2)
        rows = tf.zeros_like(state[:, 0])
        vector = rows[:, tf.newaxis] + pattern
        return _Memory(rows, vector, tf.zeros_like(rows, tf.int32))

    def refresh(
        self,
        system: System,
        time: tf.Tensor,
        state: tf.Tensor,
        memory: _Memory,
        rejected: tf.Tensor,
        active: tf.Tensor,
    ) -> tuple[_Memory, tf.Tensor]:
        wanted = active & (rejected | (memory.age >= self.refresh_every))

        def estimate() -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
            return _power_iteration(system, time, state, memory, wanted, self.power_iterations)

        def keep() -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
            return memory.radius, memory.vector, tf.zeros_like(memory.age)

        radius, vector, products = tf.cond(tf.reduce_any(wanted), estimate, keep)
        return _Memory(radius, vector, tf.where(wanted, 1, memory.age + 1)), products

    def limit_step_size(self, memory: _Memory, step_size: tf.Tensor, first: tf.Tensor) -> tf.Tensor:
        if self.num_stages is not None:
            return step_size  # the caller has taken the choice, and its stability, upon himself
        reach = ((self.max_num_stages - 1.0) ** 2 - 1) / (_STABILITY * _RADIUS_SAFETY)
        if self.first_step_size is None:
            # Nothing is known yet of f but how fast it can change.
            reach = tf.where(first, tf.minimum(reach, 1.0), reach)
        reach = tf.cast(reach, step_size.dtype)
        return tf.minimum(step_size, reach / tf.maximum(memory.radius, 1e-30))

    def plan(self, memory: _Memory, step_size: tf.Tensor) -> tf.Tensor:
        if self.num_stages is not None:
            return tf.fill(tf.shape(step_size), self.num_stages)
        stiffness = tf.cast(step_size * _RADIUS_SAFETY * memory.radius, tf.float64)
        stages = 1 + tf.cast(tf.sqrt(_STABILITY * stiffness + 1), tf.int32)
        return tf.clip_by_value(stages, 2, self.max_num_stages)

    def spectral_radius(self, memory: _Memory, like: tf.Tensor) -> tf.Tensor:
        del like
        return memory.radius


def _power_iteration(
    system: System,
    time: tf.Tensor,
    state: tf.Tensor,
    memory: _Memory,
    wanted: tf.Tensor,
    max_iterations: int,
) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """Estimates the spectral radius of df/dy in the `wanted` rows from the vectors in `memory`.

    Returns the radius `[B]`, its vector `[B, P]` and the products made `[B]`. Rows stop together,
    when all have changed by less than a hundredth in one iteration.
    """
    tiny = tf.constant(np.finfo(state.dtype.as_numpy_dtype).tiny ** 0.5, state.dtype)

    def unit(vector: tf.Tensor) -> tf.Tensor:
        return vector / tf.maximum(tf.norm(vector, axis=-1, keepdims=True), tiny)

    def iterate(i: Any, radius: Any, vector: Any, moving: Any) -> tuple[Any, ...]:
        del moving
        product = system.jacobian_product(time, state, vector)
        now = tf.norm(product, axis=-1)
        now = tf.where(tf.math.is_finite(now), now, radius)
        moving = tf.reduce_any(wanted & (tf.abs(now - radius) > 0.01 * now))
        vector = tf.where((now > tiny)[:, tf.newaxis], unit(product), vector)
        return i + 1, now, vector, moving

    count, radius, vector, _ = tf.while_loop(
        lambda i, radius, vector, moving: (i < max_iterations) & moving,
        iterate,
        (tf.constant(0), memory.radius, unit(memory.vector), tf.constant(True)),
        maximum_iterations=max_iterations,
    )
    finite = wanted & tf.reduce_all(tf.math.is_finite(vector), -1)
    return (
        tf.where(finite, radius, memory.radius),
        tf.where(finite[:, tf.newaxis], vector, memory.vector),
        tf.where(wanted, count, 0),
    )


class _Coefficients(NamedTuple):
    """Of stage j, each `[B, 1]`, and its time `c` as a fraction of the step, `[B]`."""

    mu: tf.Tensor
    nu: tf.Tensor
    mu_tilde: tf.Tensor
    gamma_tilde: tf.Tensor
    c: tf.Tensor


class _Chebyshev:
    """T_j(w0) and its first two derivatives, for rows with their own w0 = 1 + epsilon / s**2.

    Closed forms, in float64: T_j(cosh a) = cosh(j a). So any stage can be had at any moment, by
    the step as by its reverse, and no table has to be kept.
    """

    def __init__(self, num_stages: tf.Tensor) -> None:
        self.s = tf.cast(tf.maximum(num_stages, 2), tf.float64)
        excess = _DAMPING / tf.square(self.s)
        self.w0 = 1 + excess
        self._sinh2 = excess * (2 + excess)
        self._sinh = tf.sqrt(self._sinh2)
        self._angle = tf.math.log1p(excess + self._sinh)
        self.w1 = self.first(self.s) / self.second(self.s)  # equation (2.4)

    def value(self, j: tf.Tensor) -> tf.Tensor:
        return tf.cosh(j * self._angle)

    def first(self, j: tf.Tensor) -> tf.Tensor:
        return j * tf.sinh(j * self._angle) / self._sinh

    def second(self, j: tf.Tensor) -> tf.Tensor:
        return (tf.square(j) * self.value(j) - self.w0 * self.first(j)) / self._sinh2

    def b(self, j: tf.Tensor) -> tf.Tensor:
        j = tf.maximum(j, 2.0)  # b_0 = b_1 = b_2
        return self.second(j) / tf.square(self.first(j))

    def c(self, j: tf.Tensor) -> tf.Tensor:
        """Time of stage j >= 0, as a fraction of the step."""
        later = tf.maximum(j, 2.0)
        c = self.w1 * self.second(later) / self.first(later)
        return tf.where(j < 0.5, tf.zeros_like(c), tf.where(j < 1.5, c / (4 * self.w0), c))


def _coefficients(num_stages: tf.Tensor, j: tf.Tensor, dtype: tf.DType) -> _Coefficients:
    """Returns the coefficients of stage j >= 1, equations (2.2) to (2.5).

    Before the first stage and after a row's last one, they are those that make Y_j = Y_{j-1}.
    """
    t = _Chebyshev(num_stages)
    first, idle = tf.equal(j, 1), (j < 1) | (j > num_stages)
    j = tf.cast(j, tf.float64)
    b, b1, b2 = t.b(j), t.b(j - 1), t.b(j - 2)
    mu_tilde = 2 * b * t.w1 / b1
    zero, one = tf.zeros_like(b), tf.ones_like(b)
    columns = (
        tf.where(first | idle, one, 2 * b * t.w0 / b1),
        tf.where(first | idle, zero, -b / b2),
        tf.where(idle, zero, tf.where(first, b * t.w1, mu_tilde)),
        tf.where(first | idle, zero, -(1 - b1 * t.value(j - 1)) * mu_tilde),
    )
    mu, nu, mu_tilde, gamma_tilde = (tf.cast(x, dtype)[:, tf.newaxis] for x in columns)
    return _Coefficients(mu, nu, mu_tilde, gamma_tilde, _stage_time(num_stages, j, dtype))


def _stage_time(num_stages: tf.Tensor, j: tf.Tensor, dtype: tf.DType) -> tf.Tensor:
    """Returns when stage j >= 0 is, as a fraction of the step, `[B]`."""
    j = tf.cast(j, tf.float64)
    t = _Chebyshev(num_stages)
    return tf.cast(t.c(tf.minimum(j, t.s)), dtype)  # c_s = 1
