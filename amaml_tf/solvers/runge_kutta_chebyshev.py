"""The stabilised explicit solver RKC2, for the real, negative spectrum of gradient flows."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import NamedTuple

import tensorflow as tf

from amaml_tf.errors import UsageError
from amaml_tf.solvers.chebyshev_coefficients import Table, coefficients
from amaml_tf.solvers.chebyshev_steps import ChebyshevSteps
from amaml_tf.solvers.fixed_step import check_fixed_steps
from amaml_tf.solvers.method import Memory
from amaml_tf.solvers.power_iteration import power_iteration
from amaml_tf.solvers.step_size_control import StepSizeControl
from amaml_tf.solvers.system import System
from amaml_tf.solvers.tfp_solver import REGISTRY, AdjointSolverFn

_STABILITY = 1.54  # s stages are stable for step_size * radius up to about (s**2 - 1) / 1.54
_RADIUS_SAFETY = 1.2  # power iteration approaches the radius from below


class _Memory(NamedTuple):
    """Per row: the estimated spectral radius, its eigenvector, the steps since the estimate."""

    radius: tf.Tensor
    vector: tf.Tensor
    age: tf.Tensor


@REGISTRY.register("runge_kutta_chebyshev")
class RungeKuttaChebyshev(StepSizeControl, ChebyshevSteps):
    """The Runge-Kutta-Chebyshev method; steps and their numbers of stages are adaptive or fixed.

    A step of s stages costs s evaluations of f and is stable for `step_size * radius` up to about
    0.65 s**2, where `radius` is the spectral radius of df/dy. The cost of a long run therefore
    grows like the square root of its length; with Euler's or another classical method it grows
    linearly. The eigenvalues of df/dy must lie near the negative real axis, as those of a
    gradient flow do (its Jacobian is minus a Hessian). Do not use it for oscillating systems.

    The radius is estimated by power iteration, which starts from the previous estimate. It is
    estimated again after `refresh_every` accepted steps and after a rejected step.

    With `step_size` and `num_stages` there is no error control and no estimate of the radius: all
    steps are equal, and the caller is responsible for their stability. That is meant for networks
    whose gradient has kinks (ReLU), where error control takes hundreds of tiny steps. A step of s
    stages then takes the place of s steps of gradient descent, and may be s times (order 1) or s/3
    times (order 2) as long as all of these together.

    Args:
        rtol: relative tolerance, > 0. None (default): 3e-3. On the networks of the paper,
            meta-gradients are then accurate to one part in a thousand at T = 5, and to one in a
            hundred at T = 50 (see `benchmarks.trajectory_length`).
        atol: absolute tolerance, > 0. None (default): 5e-6.
        first_step_size: the first step to try. None (default): 1 / spectral radius.
        safety_factor: in (0, 1]. Default 0.8.
        min_step_size_factor: in (0, 1). Default 0.1.
        max_step_size_factor: > 1. Default 10.
        max_num_steps: cap on the attempted steps of a solve. None (default): 4096; with `step_size`
            as many as the interval needs, whose length must then be a Python number.
        max_num_stages: cap on the stages of a step, >= 2; steps are shortened to what it allows.
            Default 1000. A `GradientFlow` lowers it to two thirds of the states that it keeps.
        num_stages: a fixed number of stages, >= `order`. None (default): it is adaptive.
        refresh_every: accepted steps between two estimates of the radius. Default 3.
        power_iterations: cap on the Jacobian products of one estimate. Default 50.
        step_size: length of all steps, in units of time, > 0; needs `num_stages`, and leaves no
            meaning to the arguments above but `max_num_steps`. An interval that is not a multiple
            of it is divided into the fewest equal steps that are not longer. None (default): steps
            are adaptive.
        order: 1 or 2 (default). Steps of order 1 are stable up to 1.93 s**2, three times as far,
            and are gradient descent if s = 1. They have no error estimate and need `step_size`.
        make_adjoint_solver_fn: see `tfp.math.ode.Solver`.
        validate_args: see `tfp.math.ode.Solver`.
        name: name of the solver.

    Raises:
        UsageError: if an argument is out of its range.

    Reference:
        Sommeijer, Shampine, Verwer, "RKC: an explicit solver for parabolic PDEs", J. Comp. Appl.
        Math. 88 (1998) 315-326; equation numbers in the code refer to it. Order 1: Verwer,
        Hundsdorfer, Sommeijer, Numer. Math. 57 (1990) 157-178.
    """

    error_order = 3

    def __init__(
        self,
        rtol: float | None = None,
        atol: float | None = None,
        first_step_size: float | None = None,
        safety_factor: float = 0.8,
        min_step_size_factor: float = 0.1,
        max_step_size_factor: float = 10.0,
        max_num_steps: int | None = None,
        max_num_stages: int = 1000,
        num_stages: int | None = None,
        refresh_every: int = 3,
        power_iterations: int = 50,
        step_size: float | None = None,
        order: int = 2,
        make_adjoint_solver_fn: AdjointSolverFn | None = None,
        validate_args: bool = False,
        name: str = "runge_kutta_chebyshev",
    ) -> None:
        ChebyshevSteps.__init__(self, make_adjoint_solver_fn, validate_args, name)
        self.order, self.adaptive = order, step_size is None
        if step_size is None:
            StepSizeControl.__init__(
                self,
                rtol=3e-3 if rtol is None else rtol,
                atol=5e-6 if atol is None else atol,
                first_step_size=first_step_size,
                safety_factor=safety_factor,
                min_step_size_factor=min_step_size_factor,
                max_step_size_factor=max_step_size_factor,
                max_num_steps=4096 if max_num_steps is None else max_num_steps,
            )
        else:
            check_fixed_steps(step_size, max_num_steps)
            self.step_size, self.max_num_steps = float(step_size), max_num_steps
        _check_kind_of_steps(
            self.adaptive,
            order,
            num_stages,
            {"rtol": rtol, "atol": atol, "first_step_size": first_step_size},
        )
        _require_at_least("max_num_stages", max_num_stages, 2)
        _require_at_least("num_stages", order if num_stages is None else num_stages, order)
        _require_at_least("refresh_every", refresh_every, 1)
        _require_at_least("power_iterations", power_iterations, 1)
        self.max_num_stages = int(num_stages or max_num_stages)
        self.num_stages = num_stages
        self.refresh_every, self.power_iterations = int(refresh_every), int(power_iterations)
        # Few coefficients are read from a table; many are computed as they are needed.
        self._coefficients = Table([num_stages], order) if num_stages else coefficients

    def bounded(self, max_num_stages: int) -> RungeKuttaChebyshev:
        if self.num_stages is not None or self.max_num_stages <= max_num_stages:
            return self
        bounded = copy.copy(self)
        bounded.max_num_stages = max_num_stages
        return bounded

    def tabulated(self, max_num_stages: int) -> RungeKuttaChebyshev:
        """Returns this method, limited as `bounded`, which reads its coefficients from a table."""
        if self.num_stages is not None:
            return self
        tabulated = copy.copy(self.bounded(max_num_stages))
        tabulated._coefficients = Table(range(2, tabulated.max_num_stages + 1))  # noqa: SLF001 - its own class
        return tabulated

    # -- step size and number of stages -----------------------------------------------------------

    def initial_memory(self, state: tf.Tensor) -> Memory:
        if not self.adaptive:
            return ()
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
    ) -> tuple[Memory, tf.Tensor]:
        if not self.adaptive:
            return super().refresh(system, time, state, memory, rejected, active)
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
        return _Memory(*memory).radius if self.adaptive else tf.zeros_like(like)


def _require_at_least(name: str, value: int, least: int) -> None:
    if value < least:
        raise UsageError(f"Expected {name} to be at least {least}, got {value}.")


def _check_kind_of_steps(
    adaptive: bool, order: int, num_stages: int | None, tolerances: Mapping[str, float | None]
) -> None:
    """Raises UsageError if arguments are for adaptive steps, and others for fixed ones."""
    if order not in (1, 2):
        raise UsageError(f"Expected order to be 1 or 2, got {order}.")
    if adaptive and order == 1:
        raise UsageError(
            "Expected step_size and num_stages with order=1, whose steps have no error estimate, "
            "got no step_size; pass both, or order=2."
        )
    if not adaptive and num_stages is None:
        raise UsageError(
            "Expected num_stages with step_size, got none; pass the stages of a step, or leave "
            "step_size out for steps that the solver chooses."
        )
    given = [name for name, value in tolerances.items() if value is not None]
    if not adaptive and given:
        raise UsageError(
            f"Expected {' and '.join(given)} or step_size, got both; with a step_size there is no "
            "error control, so leave one of them out."
        )
