"""The loop that takes one-step methods through time, one row a problem, with caps.

Every row has its own time, step size and status: a hard task does not shorten the steps of the
others, and a task that fails does not stop them. What the rows share are the passes of the loop,
each of which waits for the row with the most stages: `docs/numerics.md` says what that costs.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

from amaml_tf.solvers.diagnostics import (
    COMPLETED,
    NON_FINITE,
    RUNNING,
    STEP_LIMIT,
    STEP_TOO_SMALL,
    Diagnostics,
    nothing_done,
)
from amaml_tf.solvers.one_step import OneStepSolver, Step
from amaml_tf.solvers.system import System
from amaml_tf.solvers.trajectory import Recorder

# A fixed step may be this much longer than asked for, so that 0.3 / 0.1 is three steps, not four.
_STEP_COUNT_SLACK = 1e-5


class Solution(NamedTuple):
    """State reached `[B, P]`, diagnostics, the trajectory if recorded, and a warm start."""

    state: tf.Tensor
    diagnostics: Diagnostics
    trajectory: Any  # a Trajectory, or None
    warm_start: WarmStart | None = None


class WarmStart(NamedTuple):
    """What an adaptive solve knows, and a later one can begin with.

    Attributes:
        step_size: `[B]`, the next to try.
        derivative: `[B, P]`, f at the current state (`[B, 0]` for fixed-step solvers).
        known: bool scalar, whether `derivative` has been evaluated.
        rejected: bool `[B]`, whether the last attempt failed, or none was made.
        memory: the solver's own.
    """

    step_size: tf.Tensor
    derivative: tf.Tensor
    known: tf.Tensor
    rejected: tf.Tensor
    memory: Any


class _Problem(NamedTuple):
    """What does not change while a solve goes on; `t0` and `t1` are `[B]`.

    `num_fixed` `[B]` are the steps of a fixed-step solver, None for an adaptive one. Without
    `capacity` nothing is recorded, and without `keep_points` no stage states.
    """

    solver: OneStepSolver
    system: System
    t0: tf.Tensor
    t1: tf.Tensor
    num_fixed: tf.Tensor | None
    capacity: int | None
    keep_points: bool


class _Attempt(NamedTuple):
    """A step to try, per row: the size that the solver would take, and that up to `t1` at most.

    `arrives` says whether the step ends at `t1`.
    """

    proposed: tf.Tensor
    step_size: tf.Tensor
    num_stages: tf.Tensor
    arrives: tf.Tensor


class _Verdict(NamedTuple):
    """What became of an attempt, per row.

    `lost` says that a row whose attempt was not accepted has failed, and `failure` how; `reached`
    is the time at the end of an accepted step.
    """

    accepted: tf.Tensor
    next_step_size: tf.Tensor
    lost: tf.Tensor
    failure: Any
    reached: tf.Tensor
    num_evaluations: tf.Tensor


class _Loop(NamedTuple):
    num_iterations: tf.Tensor
    state: tf.Tensor
    control: WarmStart
    diagnostics: Diagnostics
    recorder: Any  # a Recorder, or ()


def as_tensor(value: Any, dtype: tf.DType) -> tf.Tensor:
    """Returns `value` as a tensor of `dtype`; Python numbers don't pass through float32."""
    return tf.cast(value, dtype) if tf.is_tensor(value) else tf.convert_to_tensor(value, dtype)


def num_fixed_steps(step_size: float, interval: Any) -> Any:
    """Returns how many equal steps, none longer than `step_size`, cover `interval`.

    An int for a Python number, int32 of the same shape for a tensor.
    """
    if tf.is_tensor(interval):
        ratio = tf.cast(interval, tf.float64) / step_size
        return tf.maximum(tf.cast(tf.math.ceil(ratio * (1 - _STEP_COUNT_SLACK)), tf.int32), 1)
    return max(int(np.ceil(interval / step_size * (1 - _STEP_COUNT_SLACK))), 1)


def integrate(
    solver: OneStepSolver,
    system: System,
    initial_time: Any,
    final_time: Any,
    initial_state: tf.Tensor,
    *,
    max_num_steps: Any,
    capacity: int | None = None,
    warm_start: WarmStart | None = None,
) -> Solution:
    """Integrates every row of `system` from `initial_time` to `final_time`.

    Args:
        solver: the method.
        system: the problems.
        initial_time: float scalar or `[B]`.
        final_time: float scalar or `[B]`, not before `initial_time`.
        initial_state: `[B, P]` of static shape.
        max_num_steps: most passes of the loop (accepted or rejected). Rows that are not there by
            then end with STEP_LIMIT. A Python int where the trajectory is recorded.
        capacity: record the trajectory in buffers of this many states (a power of two); None
            records nothing.
        warm_start: of an earlier solve of the same system, to go on from.

    Returns:
        A `Solution`. Rows that failed hold their last finite state.
    """
    state = tf.convert_to_tensor(initial_state)
    rows = tf.reduce_sum(tf.zeros_like(state), axis=-1)
    t0 = as_tensor(initial_time, state.dtype) + rows
    t1 = as_tensor(final_time, state.dtype) + rows
    control = cold_start(solver, state, t1 - t0) if warm_start is None else warm_start
    recorder: Any = ()
    keep_points = False
    if capacity is not None:
        # A run of fixed steps takes as many as it may: one that does not fit needs no points.
        length = max_num_steps * solver.max_num_stages
        keep_points = solver.adaptive or solver.max_num_steps is not None or length <= capacity
        recorder = Recorder.empty(capacity, max_num_steps, state, keep_points)
    loop = _Loop(tf.constant(0), state, control, nothing_done(state, t0), recorder)
    num_fixed = None
    if not solver.adaptive:
        num_fixed = num_fixed_steps(solver.step_size, t1 - t0)
    problem = _Problem(solver, system, t0, t1, num_fixed, capacity, keep_points)

    def condition(loop: _Loop) -> tf.Tensor:
        running = tf.reduce_any(loop.diagnostics.status == RUNNING)
        return (loop.num_iterations < max_num_steps) & running

    def body(loop: _Loop) -> tuple[_Loop]:
        return (_advance(problem, loop),)

    (loop,) = tf.while_loop(condition, body, (loop,), maximum_iterations=max_num_steps)
    status = loop.diagnostics.status
    diagnostics = loop.diagnostics._replace(status=tf.where(status == RUNNING, STEP_LIMIT, status))
    trajectory = None if capacity is None else loop.recorder.finish(diagnostics.time, loop.state)
    return Solution(loop.state, diagnostics, trajectory, loop.control)


def cold_start(solver: OneStepSolver, state: tf.Tensor, interval: tf.Tensor) -> WarmStart:
    """Returns what is known before the first evaluation at `state`, of a run over `interval`."""
    rows = tf.zeros_like(state[:, 0])
    first = interval
    if solver.adaptive and solver.first_step_size is not None:
        first = rows + solver.first_step_size
    return WarmStart(
        step_size=rows + first,
        derivative=tf.zeros_like(state) if solver.adaptive else state[:, :0],
        known=tf.constant(False),
        rejected=rows >= 0,
        memory=solver.initial_memory(state),
    )


def _advance(problem: _Problem, loop: _Loop) -> _Loop:
    """One attempt at a step of every running row."""
    solver, capacity = problem.solver, problem.capacity
    control, done, state, recorder = loop.control, loop.diagnostics, loop.state, loop.recorder
    active = done.status == RUNNING
    memory, products = solver.refresh(
        problem.system, done.time, state, control.memory, control.rejected, active
    )
    attempt = _attempt(problem, done, control, memory, active)
    points = offset = None
    if problem.keep_points:
        points, offset = recorder.points, recorder.num_points
    step = solver.step(
        problem.system,
        done.time,
        state,
        control.derivative,
        control.known,
        attempt.step_size,
        attempt.num_stages,
        points,
        offset,
    )
    judge = _judge_adaptive if solver.adaptive else _judge_fixed
    verdict = judge(problem, loop, active, attempt, step)
    accepted = verdict.accepted
    if capacity is not None:
        taken = tf.where(accepted, attempt.step_size, 0)
        stages = tf.where(accepted, attempt.num_stages, 0)
        recorder = recorder.record_step(capacity, done.time, state, taken, stages, step.points)
    keep = accepted[:, tf.newaxis]
    return _Loop(
        num_iterations=loop.num_iterations + 1,
        state=tf.where(keep, step.state, state),
        control=WarmStart(
            step_size=verdict.next_step_size,
            derivative=tf.where(keep, step.derivative, step.start_derivative),
            known=tf.constant(solver.adaptive),
            rejected=active & ~accepted,
            memory=memory,
        ),
        diagnostics=_diagnostics_after(problem, done, active, attempt, verdict, memory, products),
        recorder=recorder,
    )


def _attempt(
    problem: _Problem, done: Diagnostics, control: WarmStart, memory: Any, active: tf.Tensor
) -> _Attempt:
    """Chooses the next step of every row; rows that do not run get one of size 0."""
    solver, t0, t1 = problem.solver, problem.t0, problem.t1
    if problem.num_fixed is None:
        proposed = solver.limit_step_size(memory, control.step_size, ~control.known)
        arrives = done.time + 1.01 * proposed >= t1
        step_size = tf.where(arrives, t1 - done.time, proposed)
    else:
        # Counted, not summed: 50,000 additions would drift in float32.
        step_size = proposed = (t1 - t0) / tf.cast(problem.num_fixed, t0.dtype)
        arrives = done.num_accepted_steps + 1 >= problem.num_fixed
    step_size = tf.where(active, step_size, 0)
    num_stages = tf.where(active, solver.plan(memory, step_size), 0)
    return _Attempt(proposed, step_size, num_stages, arrives)


def _judge_adaptive(
    problem: _Problem, loop: _Loop, active: tf.Tensor, attempt: _Attempt, step: Step
) -> _Verdict:
    """Compares the error of a step with the tolerances, and chooses the next step size by it."""
    solver: Any = problem.solver
    time, state, control = loop.diagnostics.time, loop.state, loop.control
    ratio = problem.system.error_ratio(step.error, state, step.state, solver.rtol, solver.atol)
    finite = tf.reduce_all(tf.math.is_finite(step.state), -1) & tf.math.is_finite(ratio)
    accepted = active & finite & (ratio <= 1)
    factor = solver.step_size_factor(tf.where(finite, ratio, 1e30))
    longer = tf.maximum(attempt.proposed, attempt.step_size)
    tried = tf.where(attempt.arrives & accepted, longer, attempt.step_size)
    next_step_size = tf.where(active, factor * tried, control.step_size)
    # No step from a point without a finite derivative will ever succeed.
    lost = ~tf.reduce_all(tf.math.is_finite(step.start_derivative), -1)
    lost |= next_step_size <= _smallest_step(time, problem.t1 - problem.t0)
    first_evaluation = tf.cast(active & ~control.known, tf.int32)
    return _Verdict(
        accepted,
        next_step_size,
        lost,
        failure=tf.where(finite, STEP_TOO_SMALL, NON_FINITE),
        reached=time + attempt.step_size,
        num_evaluations=attempt.num_stages + first_evaluation,
    )


def _judge_fixed(
    problem: _Problem, loop: _Loop, active: tf.Tensor, attempt: _Attempt, step: Step
) -> _Verdict:
    """Accepts a step that is finite."""
    number = tf.cast(loop.diagnostics.num_accepted_steps + 1, step.state.dtype)
    finite = tf.reduce_all(tf.math.is_finite(step.state), -1)
    return _Verdict(
        accepted=active & finite,
        next_step_size=attempt.step_size,
        lost=~finite,
        failure=NON_FINITE,
        reached=problem.t0 + attempt.step_size * number,
        num_evaluations=attempt.num_stages,
    )


def _diagnostics_after(
    problem: _Problem,
    done: Diagnostics,
    active: tf.Tensor,
    attempt: _Attempt,
    verdict: _Verdict,
    memory: Any,
    products: tf.Tensor,
) -> Diagnostics:
    """Adds an attempt to the diagnostics."""
    accepted, rejected = verdict.accepted, active & ~verdict.accepted
    status = tf.where(accepted & attempt.arrives, COMPLETED, done.status)
    reached = tf.where(attempt.arrives, problem.t1, verdict.reached)
    radius = problem.solver.spectral_radius(memory, done.time)
    return Diagnostics(
        status=tf.where(rejected & verdict.lost, verdict.failure, status),
        time=tf.where(accepted, reached, done.time),
        num_accepted_steps=done.num_accepted_steps + tf.cast(accepted, tf.int32),
        num_rejected_steps=done.num_rejected_steps + tf.cast(rejected, tf.int32),
        num_evaluations=done.num_evaluations + verdict.num_evaluations,
        num_jacobian_products=done.num_jacobian_products + products,
        max_stages=tf.maximum(done.max_stages, attempt.num_stages),
        spectral_radius=tf.maximum(done.spectral_radius, radius),
    )


def _smallest_step(time: tf.Tensor, interval: tf.Tensor) -> tf.Tensor:
    """A step that rounding makes meaningless at `time`."""
    resolution = float(np.finfo(time.dtype.as_numpy_dtype).eps)
    return 16 * resolution * tf.maximum(tf.abs(time), 1e-3 * tf.abs(interval))
