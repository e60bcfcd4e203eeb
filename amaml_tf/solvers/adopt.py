"""TensorFlow Probability's own solvers, in the terms of this library."""

from __future__ import annotations

from typing import Any

import tensorflow as tf
import tensorflow_probability as tfp

from amaml_tf.solvers import integrate as loop
from amaml_tf.solvers.dormand_prince import DormandPrince
from amaml_tf.solvers.system import System
from amaml_tf.solvers.trajectory import Trajectory


def as_one_step(solver: tfp.math.ode.Solver) -> tfp.math.ode.Solver:
    """Returns `DormandPrince` with the options of a `tfp.math.ode.DormandPrince`; others as is."""
    if not isinstance(solver, tfp.math.ode.DormandPrince):
        return solver
    options = {
        name: getattr(solver, f"_{name}")
        for name in (
            "rtol",
            "atol",
            "first_step_size",
            "safety_factor",
            "min_step_size_factor",
            "max_step_size_factor",
        )
    }
    if solver._max_num_steps is not None:  # noqa: SLF001 - TFP has no public reading of it
        options["max_num_steps"] = int(solver._max_num_steps)  # noqa: SLF001
    return DormandPrince(**options)


def solve_on_grid(
    solver: tfp.math.ode.Solver,
    system: System,
    final_time: Any,
    initial_state: tf.Tensor,
    num_intervals: int,
) -> loop.Solution:
    """Solves `system` with a foreign solver, and keeps the states at equally spaced times.

    The rows become one problem with one step size. The trajectory serves the continuous adjoint:
    every interval counts as a step of one evaluation.
    """
    state = tf.convert_to_tensor(initial_state)
    t1 = loop.as_tensor(final_time, state.dtype)
    rows = tf.zeros_like(state[:, 0])
    fractions = tf.range(num_intervals + 1, dtype=state.dtype) / num_intervals
    results = solver.solve(
        lambda time, y: system.derivative(rows + time, y),
        tf.zeros_like(t1),
        state,
        fractions[1:] * t1,
    )
    nodes = tf.concat([state[tf.newaxis], results.states], axis=0)
    final_state = nodes[-1]
    finite = tf.reduce_all(tf.math.is_finite(final_state), axis=-1)
    stopped = tf.where(results.diagnostics.status == 0, loop.COMPLETED, loop.STEP_LIMIT)
    status = tf.where(finite, stopped, loop.NON_FINITE)
    ones = tf.ones_like(status)
    evaluations = tf.cast(results.diagnostics.num_ode_fn_evaluations, tf.int32)
    diagnostics = loop.Diagnostics(
        status=status,
        time=tf.where(status == loop.COMPLETED, rows + t1, rows),
        num_accepted_steps=ones * num_intervals,
        num_rejected_steps=0 * ones,
        num_evaluations=ones * evaluations,
        num_jacobian_products=0 * ones,
        max_stages=ones,
        spectral_radius=rows,
    )
    per_step = tf.ones([num_intervals, 1], state.dtype) + rows
    trajectory = Trajectory(
        checkpoints=nodes,
        points=nodes,
        times=fractions[:-1, tf.newaxis] * t1 + rows,
        step_sizes=per_step * t1 / num_intervals,
        num_stages=tf.cast(per_step, tf.int32),
        offsets=tf.range(num_intervals),
        num_steps=tf.constant(num_intervals),
        num_points=tf.constant(num_intervals),
        final_time=rows + t1,
        final_state=final_state,
    )
    return loop.Solution(final_state, diagnostics, trajectory)
