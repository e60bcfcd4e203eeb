"""Makes the solvers of TensorFlow Probability usable in this library."""

from __future__ import annotations

import tensorflow as tf
import tensorflow_probability as tfp

from amaml_tf.aliases import Scalar
from amaml_tf.configurable import Configurable
from amaml_tf.solvers.diagnostics import COMPLETED, NON_FINITE, STEP_LIMIT, Diagnostics
from amaml_tf.solvers.dormand_prince import DormandPrince
from amaml_tf.solvers.solution import Solution, as_tensor
from amaml_tf.solvers.state_stack import StateStack
from amaml_tf.solvers.system import System
from amaml_tf.solvers.tfp_solver import REGISTRY
from amaml_tf.solvers.trajectory import Trajectory


@REGISTRY.register("bdf")
class BDF(Configurable, tfp.math.ode.BDF):
    """`tfp.math.ode.BDF`, which Keras can save. For comparison: its steps have no derivative."""

    __init__ = tfp.math.ode.BDF.__init__


def as_one_step(solver: tfp.math.ode.Solver) -> tfp.math.ode.Solver:
    """Returns `solver`, or, if it is TFP's `DormandPrince`, ours with the same options."""
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
    if solver._max_num_steps is not None:  # noqa: SLF001 - TFP has no public attribute for it
        options["max_num_steps"] = int(solver._max_num_steps)  # noqa: SLF001
    return DormandPrince(**options)


def solve_on_grid(
    solver: tfp.math.ode.Solver,
    system: System,
    final_time: Scalar,
    initial_state: tf.Tensor,
    num_intervals: int,
) -> Solution:
    """Solves `system` with a solver of TFP and records the states at equally spaced times.

    All rows are solved as one problem with one step size. The trajectory is for the continuous
    adjoint: each interval counts as one step with one evaluation.
    """
    state = tf.convert_to_tensor(initial_state)
    t1 = as_tensor(final_time, state.dtype)
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
    stopped = tf.where(results.diagnostics.status == 0, COMPLETED, STEP_LIMIT)
    status = tf.where(finite, stopped, NON_FINITE)
    none = tf.zeros_like(status)
    evaluations = tf.cast(results.diagnostics.num_ode_fn_evaluations, tf.int32)
    diagnostics = Diagnostics(
        status=status,
        time=tf.where(status == COMPLETED, rows + t1, rows),
        num_accepted_steps=none + num_intervals,
        num_rejected_steps=none,
        num_evaluations=none + evaluations,
        num_jacobian_products=none,
        max_stages=none + 1,
        spectral_radius=rows,
    )
    per_step = tf.ones([num_intervals, 1], state.dtype) + rows
    trajectory = Trajectory(
        stack=StateStack.of(nodes),
        times=fractions[:-1, tf.newaxis] * t1 + rows,
        step_sizes=per_step * t1 / num_intervals,
        num_stages=tf.cast(per_step, tf.int32),
        offsets=tf.range(num_intervals),
        num_steps=tf.constant(num_intervals),
        final_time=rows + t1,
        final_state=final_state,
    )
    return Solution(final_state, diagnostics, trajectory)
