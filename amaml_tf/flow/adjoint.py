"""The discrete and the continuous adjoint: the backward pass through a recorded trajectory.

From the cotangent of u(T) they compute those of u(0) and of the constants. Both are pure functions;
they do not use `tf.custom_gradient`, models or losses. For du/dt = f(u; c) and a loss L of u(T),
with λ(T) = dL/du(T) (Li et al., "Meta-Learning with Adjoint Methods", AISTATS 2023; for gradient
flows -df/du is the Hessian of the support loss):

    dλ/dt = -(df/du)ᵀ λ,     dL/du(0) = λ(0),     dL/dc = ∫ (df/dc)ᵀ λ dt

The *continuous* adjoint solves these equations and reads u(t) from the trajectory: to integrate u
backwards instead would amplify errors exponentially. The *discrete* adjoint differentiates the
steps that the solver took: it is exact for the discretised flow.
"""

from __future__ import annotations

from typing import NamedTuple, TypeAlias

import numpy as np
import tensorflow as tf

from amaml_tf.flow.dense_output import DenseOutput
from amaml_tf.flow.segments import Segment, fold_backwards
from amaml_tf.solvers.diagnostics import COMPLETED, AdjointDiagnostics
from amaml_tf.solvers.loop import integrate
from amaml_tf.solvers.method import Method
from amaml_tf.solvers.system import System
from amaml_tf.solvers.trajectory import Trajectory

Constants: TypeAlias = tuple[tf.Tensor, ...]
# λ, the cotangents of the constants, the largest norm of λ so far, and the number of products.
_Bars: TypeAlias = tuple[tf.Tensor, Constants, tf.Tensor, tf.Tensor]


class Adjoint(NamedTuple):
    """λ(0) `[B, P]`, the cotangents of the constants `[B, Q_k]`, and diagnostics."""

    state: tf.Tensor
    constants: Constants
    diagnostics: AdjointDiagnostics


def discrete_adjoint(
    solver: Method,
    system: System,
    trajectory: Trajectory,
    cotangent: tf.Tensor,
    constants: Constants,
) -> Adjoint:
    """Differentiates the steps of `trajectory`, with step sizes and stages held fixed.

    Args:
        solver: the solver that made the trajectory.
        system: the problems, with `vjp`.
        trajectory: the recorded solve of `system` by `solver`.
        cotangent: `[B, P]`, λ(T).
        constants: zeros, `[B, Q_k]` for every constant of the system.

    Returns:
        An `Adjoint`. It takes one vector-Jacobian product per evaluation of the forward solve.
    """

    def reverse_step(n: tf.Tensor, segment: Segment, carry: _Bars) -> _Bars:
        state_bar, constants_bar, peak, products = carry
        taken = trajectory.step(n)
        new = solver.step_vjp(
            system,
            taken.time,
            taken.step_size,
            taken.num_stages,
            segment.rows,
            segment.row(n),
            state_bar,
            constants_bar,
        )
        # A row ignores what it computed in a step that it did not take: this may be NaN.
        advanced = (taken.step_size > 0)[:, tf.newaxis]
        state_bar, constants_bar = tf.nest.map_structure(
            lambda bar, old: tf.where(advanced, bar, old), new, (state_bar, constants_bar)
        )
        peak = tf.maximum(peak, tf.norm(state_bar, axis=-1))
        return state_bar, constants_bar, peak, products + taken.num_stages

    def visit(segment: Segment, carry: _Bars) -> _Bars:
        _, carry = tf.while_loop(
            lambda n, carry: n >= segment.first,
            lambda n, carry: (n - 1, reverse_step(n, segment, carry)),
            (segment.end - 1, carry),
            maximum_iterations=trajectory.max_num_steps,
        )
        return carry

    start = tf.norm(cotangent, axis=-1)
    none = tf.zeros_like(trajectory.num_stages[0])
    carry = (cotangent, constants, start, none)
    carry, evaluations = fold_backwards(solver, system, trajectory, carry, visit)
    state_bar, constants_bar, peak, products = carry
    diagnostics = AdjointDiagnostics(none + COMPLETED, evaluations, products, _ratio(peak, start))
    return Adjoint(state_bar, constants_bar, diagnostics)


def continuous_adjoint(
    solver: Method,
    system: System,
    trajectory: Trajectory,
    cotangent: tf.Tensor,
    constants: Constants,
    adjoint_solver: Method,
    max_num_steps: int,
) -> Adjoint:
    """Solves the adjoint ODE from T back to 0 over the stored trajectory.

    Between the states of the forward steps, u(t) is a Hermite polynomial whose order is not below
    the solver's (see `DenseOutput`). The norm of the local error of λ is compared with `rtol` times
    the norm of λ, however small that is: `atol` is not used. The integrals for the constants are
    solved together with λ and do not enter the error.

    Args:
        solver: the solver that made the trajectory.
        system: the problems, with `vjp`.
        trajectory: the recorded solve of `system` by `solver`.
        cotangent: `[B, P]`, λ(T).
        constants: zeros, `[B, Q_k]` for every constant of the system.
        adjoint_solver: solver of the adjoint ODE, with its own tolerances.
        max_num_steps: cap on the steps of `adjoint_solver` in each segment of the trajectory.

    Returns:
        An `Adjoint`. A row whose adjoint solve fails has a negative status.
    """
    widths = [cotangent.shape[-1], *(constant.shape[-1] for constant in constants)]
    order = getattr(solver, "order", 5)  # TFP's BDF has at most order 5

    def visit(segment: Segment, carry: tuple[tf.Tensor, ...]) -> tuple[tf.Tensor, ...]:
        row, status, peak, products, evaluations = carry
        flow = DenseOutput.of(system, segment, order)
        backward = _adjoint_system(system, flow, widths)
        solution = integrate(
            adjoint_solver,
            backward,
            tf.zeros_like(flow.end_time),
            flow.end_time - flow.start_time,
            row,
            max_num_steps=max_num_steps,
        )
        done = solution.diagnostics
        products += done.num_evaluations + done.num_jacobian_products
        peak = tf.maximum(peak, tf.norm(solution.state[:, : widths[0]], axis=-1))
        evaluations += segment.end - segment.first + 1
        return solution.state, tf.minimum(status, done.status), peak, products, evaluations

    start = tf.norm(cotangent, axis=-1)
    none = tf.zeros_like(trajectory.num_stages[0])
    carry = (tf.concat([cotangent, *constants], axis=-1), none, start, none, none)
    carry, recomputed = fold_backwards(solver, system, trajectory, carry, visit)
    row, status, peak, products, evaluations = carry
    state_bar, *constants_bar = tf.split(row, widths, axis=-1)
    diagnostics = AdjointDiagnostics(
        status, recomputed + evaluations, products, _ratio(peak, start)
    )
    return Adjoint(state_bar, tuple(constants_bar), diagnostics)


def _adjoint_system(system: System, flow: DenseOutput, widths: list[int]) -> System:
    """Returns the adjoint ODE in backward time s = end_time - t, with the constants' integrals."""

    def derivative(backward_time: tf.Tensor, row: tf.Tensor) -> tf.Tensor:
        time = flow.end_time - backward_time
        state_bar, constants_bar = system.vjp(time, flow.at(time), row[:, : widths[0]])
        return tf.concat([state_bar, *constants_bar], axis=-1)

    def error_ratio(
        error: tf.Tensor, row: tf.Tensor, new_row: tf.Tensor, rtol: float, atol: float
    ) -> tf.Tensor:
        del atol

        def size(x: tf.Tensor) -> tf.Tensor:
            return tf.norm(x[:, : widths[0]], axis=-1)

        tiny = np.finfo(error.dtype.as_numpy_dtype).tiny
        return size(error) / (rtol * tf.maximum(size(row), size(new_row)) + tiny)

    return System(
        derivative,
        # The equation is linear in λ: it is its own Jacobian product.
        jacobian_product=lambda time, row, vector: derivative(time, vector),
        error_ratio=error_ratio,
    )


def _ratio(peak: tf.Tensor, start: tf.Tensor) -> tf.Tensor:
    return tf.maximum(tf.math.divide_no_nan(peak, start), 1)
