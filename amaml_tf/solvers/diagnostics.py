"""Diagnostics of a solve and of a backward pass, for each row."""

from __future__ import annotations

from typing import NamedTuple

import tensorflow as tf

# Status of a row. Failures are negative, as in `tfp.math.ode.Diagnostics.status`.
RUNNING = 1
COMPLETED = 0
NON_FINITE = -1
STEP_LIMIT = -2
STEP_TOO_SMALL = -3


class Diagnostics(NamedTuple):
    """The status and the counts of a solve, per row; int32 `[B]` unless stated otherwise.

    Attributes:
        status: COMPLETED (0), or a failure: NON_FINITE (-1), STEP_LIMIT (-2),
            STEP_TOO_SMALL (-3).
        time: float `[B]`, the time reached.
        num_accepted_steps: steps taken.
        num_rejected_steps: attempted steps whose error was too large or not finite.
        num_evaluations: evaluations of the derivative.
        num_jacobian_products: Jacobian products, made to estimate the spectral radius.
        max_stages: the largest number of evaluations in one step.
        spectral_radius: float `[B]`, the largest estimate; 0 for solvers that need none.
    """

    status: tf.Tensor
    time: tf.Tensor
    num_accepted_steps: tf.Tensor
    num_rejected_steps: tf.Tensor
    num_evaluations: tf.Tensor
    num_jacobian_products: tf.Tensor
    max_stages: tf.Tensor
    spectral_radius: tf.Tensor


class AdjointDiagnostics(NamedTuple):
    """The status and the counts of a backward pass, per row.

    Attributes:
        status: int32 `[B]`, COMPLETED (0) or the failure of the adjoint's own solve.
        num_evaluations: int32 `[B]`, evaluations of f, for recomputing or interpolating u(t).
        num_vector_jacobian_products: int32 `[B]`; for gradient flows, Hessian-vector products.
        growth: float `[B]`, the largest norm of λ(t) divided by that of λ(T); 1 if λ only shrinks.
    """

    status: tf.Tensor
    num_evaluations: tf.Tensor
    num_vector_jacobian_products: tf.Tensor
    growth: tf.Tensor


def nothing_done(state: tf.Tensor, time: tf.Tensor) -> Diagnostics:
    """Returns the diagnostics before the first step, at `state` `[B, P]` and `time` `[B]`."""
    none = tf.zeros_like(time, tf.int32)
    finite = tf.reduce_all(tf.math.is_finite(state), axis=-1)
    counts = (none,) * 5
    return Diagnostics(tf.where(finite, RUNNING, NON_FINITE), time, *counts, tf.zeros_like(time))


def total(before: Diagnostics, after: Diagnostics) -> Diagnostics:
    """Returns the combined diagnostics of two consecutive runs of the same rows."""
    return Diagnostics(
        status=after.status,
        time=after.time,
        num_accepted_steps=before.num_accepted_steps + after.num_accepted_steps,
        num_rejected_steps=before.num_rejected_steps + after.num_rejected_steps,
        num_evaluations=before.num_evaluations + after.num_evaluations,
        num_jacobian_products=before.num_jacobian_products + after.num_jacobian_products,
        max_stages=tf.maximum(before.max_stages, after.max_stages),
        spectral_radius=tf.maximum(before.spectral_radius, after.spectral_radius),
    )
