"""Base class of the solvers, a one-step method as a `tfp.math.ode.Solver`, and the registry."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple, TypeAlias

import tensorflow as tf
import tensorflow_probability as tfp

from amaml_tf.aliases import Scalar, Tensors
from amaml_tf.configurable import Configurable
from amaml_tf.errors import UsageError
from amaml_tf.registry import Registry
from amaml_tf.solvers.diagnostics import Diagnostics, nothing_done, total
from amaml_tf.solvers.loop import integrate
from amaml_tf.solvers.method import Method
from amaml_tf.solvers.solution import WarmStart, as_tensor, cold_start, num_fixed_steps
from amaml_tf.solvers.system import System
from amaml_tf.vectors import Layout


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
    """The counts of `tfp.math.ode.Diagnostics` and those of `Diagnostics`, as scalars."""

    __slots__ = ()


#: The right-hand side f(t, y, **constants) and the solution times, as TFP takes them.
OdeFn: TypeAlias = Callable[..., Tensors]
Times: TypeAlias = Sequence[float] | tf.Tensor | tfp.math.ode.ChosenBySolver

#: Returns the solver for TFP's own gradient: see `tfp.math.ode.Solver`.
AdjointSolverFn: TypeAlias = Callable[[], tfp.math.ode.Solver]


class OneStepSolver(Configurable, Method, tfp.math.ode.Solver):
    """Base class of the solvers of this library.

    Args:
        make_adjoint_solver_fn: see `tfp.math.ode.Solver`.
        validate_args: see `tfp.math.ode.Solver`.
        name: name of the solver. None (default): the name of its class.
    """

    def __init__(
        self,
        make_adjoint_solver_fn: AdjointSolverFn | None = None,
        validate_args: bool = False,
        name: str | None = None,
    ) -> None:
        tfp.math.ode.Solver.__init__(
            self,
            make_adjoint_solver_fn=make_adjoint_solver_fn,
            validate_args=validate_args,
            name=name or type(self).__name__,
        )

    def _solve(
        self,
        ode_fn: OdeFn,
        initial_time: Scalar,
        initial_state: Tensors,
        solution_times: Times,
        jacobian_fn: OdeFn | None = None,
        jacobian_sparsity: Tensors | None = None,
        batch_ndims: int | None = None,
        previous_solver_internal_state: Tensors | None = None,
    ) -> tfp.math.ode.Results:
        del jacobian_fn, jacobian_sparsity, batch_ndims, previous_solver_internal_state
        return _solve(self, ode_fn, initial_time, initial_state, solution_times)

    def _initialize_solver_internal_state(
        self, ode_fn: OdeFn, initial_time: Scalar, initial_state: Tensors
    ) -> tuple[()]:
        del ode_fn, initial_time, initial_state
        return ()


#: Solvers, by the names that flags use.
REGISTRY: Registry[tfp.math.ode.Solver] = Registry("solver")


def _solve(
    solver: OneStepSolver,
    ode_fn: OdeFn,
    initial_time: Scalar,
    initial_state: Tensors,
    solution_times: Times,
) -> tfp.math.ode.Results:
    """Solves one initial value problem, as `tfp.math.ode.Solver.solve` documents.

    The state can be any nested structure of real tensors of one dtype; it becomes the only row of
    a `System`. At every time in `solution_times` a step ends.
    """
    parts = [tf.convert_to_tensor(part) for part in tf.nest.flatten(initial_state)]
    layout = Layout.of(parts)
    row = layout.ravel(parts)[tf.newaxis]
    system = _system(ode_fn, initial_state, layout)
    if isinstance(solution_times, tfp.math.ode.ChosenBySolver):
        final_time = solution_times.final_time
        times, rows, diagnostics = _at_own_times(solver, system, initial_time, final_time, row)
    else:
        times = as_tensor(solution_times, row.dtype)
        rows, diagnostics = _at_given_times(solver, system, initial_time, times, row)
    states = tf.nest.pack_sequence_as(initial_state, layout.unravel(rows))
    return tfp.math.ode.Results(times, states, diagnostics, ())


def _system(ode_fn: OdeFn, structure: Tensors, layout: Layout) -> System:
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
    solver: OneStepSolver, system: System, initial_time: Scalar, times: tf.Tensor, row: tf.Tensor
) -> tuple[tf.Tensor, SolverDiagnostics]:
    if times.shape.rank != 1:
        raise UsageError(f"Expected solution_times to be a vector, got shape {times.shape}.")
    start = as_tensor(initial_time, row.dtype)
    cap = solver.max_num_steps or tf.int32.max  # the interval limits fixed steps
    ends = tf.concat([[start], times], axis=0)
    num_times = tf.size(times)
    rows = tf.TensorArray(row.dtype, num_times, element_shape=row.shape[1:], clear_after_read=False)

    def to_next(
        k: tf.Tensor,
        state: tf.Tensor,
        done: Diagnostics,
        warm_start: WarmStart,
        rows: tf.TensorArray,
    ) -> tuple[tf.Tensor, tf.Tensor, Diagnostics, WarmStart | None, tf.TensorArray]:
        solution = integrate(
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

    control = cold_start(solver, row, ends[1:2] - start)
    done = nothing_done(row, start[tf.newaxis])
    _, _, done, _, rows = tf.while_loop(
        lambda k, state, done, *_: (k < num_times) & (done.status[0] >= 0),
        to_next,
        (tf.constant(0), row, done, control, rows),
        maximum_iterations=num_times,
    )
    return rows.stack(), _summary(done)


def _at_own_times(
    solver: OneStepSolver, system: System, initial_time: Scalar, final_time: Scalar, row: tf.Tensor
) -> tuple[tf.Tensor, tf.Tensor, SolverDiagnostics]:
    cap = solver.max_num_steps or _static_num_steps(solver, initial_time, final_time)
    solution = integrate(
        solver,
        system,
        initial_time,
        final_time,
        row,
        max_num_steps=cap,
        capacity=cap,
        every_stage=False,
    )
    trajectory = solution.recorded
    steps = trajectory.num_steps
    times = tf.concat([trajectory.times[1:steps, 0], trajectory.final_time], axis=0)
    states = trajectory.stack.rows.buffer.stack()
    rows = tf.concat([states[1:steps, 0], solution.state], axis=0)
    return times, rows, _summary(solution.diagnostics)


def _static_num_steps(solver: OneStepSolver, initial_time: Scalar, final_time: Scalar) -> int:
    start, end = tf.get_static_value(initial_time), tf.get_static_value(final_time)
    if start is None or end is None:
        raise UsageError(
            f"Expected {solver.name} to have a cap on its steps if the length of the interval is "
            "only known when the program runs, got max_num_steps=None. Give it max_num_steps."
        )
    return num_fixed_steps(solver.step_size, float(end) - float(start))


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
