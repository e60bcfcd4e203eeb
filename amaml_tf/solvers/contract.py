"""`tfp.math.ode.Solver.solve` for the solvers of this library."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import tensorflow as tf
import tensorflow_probability as tfp

from amaml_tf.flat import Layout
from amaml_tf.solvers import integrate as loop
from amaml_tf.solvers.diagnostics import Diagnostics, nothing_done, total
from amaml_tf.solvers.one_step import OneStepSolver
from amaml_tf.solvers.system import System


class _Fields(NamedTuple):
    num_ode_fn_evaluations: tf.Tensor
    num_jacobian_evaluations: tf.Tensor
    num_matrix_factorizations: tf.Tensor
    status: tf.Tensor
    num_accepted_steps: tf.Tensor
    num_rejected_steps: tf.Tensor
    num_jacobian_products: tf.Tensor
    max_stages: tf.Tensor
    spectral_radius: tf.Tensor


class SolverDiagnostics(_Fields, tfp.math.ode.Diagnostics):
    """The counts of `tfp.math.ode.Diagnostics`, and those of `Diagnostics`; scalars."""

    __slots__ = ()


def solve(
    solver: OneStepSolver,
    ode_fn: Callable[..., Any],
    initial_time: Any,
    initial_state: Any,
    solution_times: Any,
) -> tfp.math.ode.Results:
    """Solves one initial value problem as `tfp.math.ode.Solver.solve` documents it.

    The state, of any nested structure of real tensors of one dtype, becomes the only row of a
    `System`. Every time in `solution_times` is met by a step that ends there.
    """
    parts = [tf.convert_to_tensor(part) for part in tf.nest.flatten(initial_state)]
    layout = Layout.of(parts)
    row = layout.ravel(parts)[tf.newaxis]
    system = _system(ode_fn, initial_state, layout)
    chosen = isinstance(solution_times, tfp.math.ode.ChosenBySolver)
    if chosen:
        final_time = solution_times.final_time
        times, rows, diagnostics = _at_own_times(solver, system, initial_time, final_time, row)
    else:
        times = loop.as_tensor(solution_times, row.dtype)
        rows, diagnostics = _at_given_times(solver, system, initial_time, times, row)
    states = tf.nest.pack_sequence_as(initial_state, layout.unravel(rows))
    return tfp.math.ode.Results(times, states, diagnostics, ())


def _system(ode_fn: Callable[..., Any], structure: Any, layout: Layout) -> System:
    def derivative(time: tf.Tensor, row: tf.Tensor) -> tf.Tensor:
        state = tf.nest.pack_sequence_as(structure, layout.unravel(row[0]))
        slopes = tf.nest.flatten(ode_fn(time[0], state))
        return layout.ravel([tf.cast(slope, row.dtype) for slope in slopes])[tf.newaxis]

    def transposed_product(time: tf.Tensor, row: tf.Tensor, vector: tf.Tensor) -> tf.Tensor:
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(row)
            slope = derivative(time, row)
        return tape.gradient(
            slope, row, output_gradients=vector, unconnected_gradients=tf.UnconnectedGradients.ZERO
        )

    return System(derivative, transposed_product)


def _at_given_times(
    solver: OneStepSolver, system: System, initial_time: Any, times: tf.Tensor, row: tf.Tensor
) -> tuple[tf.Tensor, SolverDiagnostics]:
    if times.shape.rank != 1:
        raise ValueError(f"Expected solution_times to be a vector, got shape {times.shape}.")
    start = loop.as_tensor(initial_time, row.dtype)
    cap = solver.max_num_steps or tf.int32.max  # fixed steps are counted by the interval
    ends = tf.concat([[start], times], axis=0)
    num_times = tf.size(times)
    rows = tf.TensorArray(row.dtype, num_times, element_shape=row.shape[1:], clear_after_read=False)

    def to_next(k: Any, state: Any, done: Any, warm_start: Any, rows: Any) -> tuple[Any, ...]:
        solution = loop.integrate(
            solver,
            system,
            tf.gather(ends, k),
            tf.gather(ends, k + 1),
            state,
            max_num_steps=cap,
            warm_start=warm_start,
        )
        done = total(done, solution.diagnostics)
        return k + 1, solution.state, done, solution.warm_start, rows.write(k, solution.state[0])

    control = loop.cold_start(solver, row, ends[1:2] - start)
    done = nothing_done(row, start[tf.newaxis])
    _, _, done, _, rows = tf.while_loop(
        lambda k, state, done, *_: (k < num_times) & (done.status[0] >= 0),
        to_next,
        (tf.constant(0), row, done, control, rows),
        maximum_iterations=num_times,
    )
    return rows.stack(), _summary(done)


def _at_own_times(
    solver: OneStepSolver, system: System, initial_time: Any, final_time: Any, row: tf.Tensor
) -> tuple[tf.Tensor, tf.Tensor, SolverDiagnostics]:
    cap = solver.max_num_steps or _static_num_steps(solver, initial_time, final_time)
    capacity = 1 << (cap - 1).bit_length()
    solution = loop.integrate(
        solver,
        system,
        initial_time,
        final_time,
        row,
        max_num_steps=cap,
        capacity=capacity,
    )
    trajectory = solution.trajectory
    steps = trajectory.num_steps
    times = tf.concat([trajectory.times[1:steps, 0], trajectory.final_time], axis=0)
    rows = tf.concat([trajectory.checkpoints[1:steps, 0], solution.state], axis=0)
    return times, rows, _summary(solution.diagnostics)


def _static_num_steps(solver: OneStepSolver, initial_time: Any, final_time: Any) -> int:
    start, end = tf.get_static_value(initial_time), tf.get_static_value(final_time)
    if start is None or end is None:
        raise ValueError(
            f"Expected {solver.name} to have a cap on its steps where the length of the interval "
            "is only known when the program runs; got max_num_steps=None. Give max_num_steps."
        )
    return loop.num_fixed_steps(solver.step_size, float(end) - float(start))


def _summary(diagnostics: Diagnostics) -> SolverDiagnostics:
    none = tf.constant(0)
    return SolverDiagnostics(
        num_ode_fn_evaluations=diagnostics.num_evaluations[0],
        num_jacobian_evaluations=none,
        num_matrix_factorizations=none,
        status=diagnostics.status[0],
        num_accepted_steps=diagnostics.num_accepted_steps[0],
        num_rejected_steps=diagnostics.num_rejected_steps[0],
        num_jacobian_products=diagnostics.num_jacobian_products[0],
        max_stages=diagnostics.max_stages[0],
        spectral_radius=diagnostics.spectral_radius[0],
    )
