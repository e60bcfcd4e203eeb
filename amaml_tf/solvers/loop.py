"""The integration loop: solves a batch of problems, one per row, with a cap on the steps.

Every row has its own time, step size and status: a hard task does not shorten the steps of the
others, and a task that fails does not stop them. The rows share the passes of the loop, and each
pass waits for the row with the most stages. `docs/numerics.md` says what that costs.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import tensorflow as tf

from amaml_tf.aliases import Scalar
from amaml_tf.solvers.diagnostics import (
    COMPLETED,
    NON_FINITE,
    RUNNING,
    STEP_LIMIT,
    STEP_TOO_SMALL,
    Diagnostics,
    nothing_done,
)
from amaml_tf.solvers.method import Memory, Method, Step
from amaml_tf.solvers.solution import (
    Solution,
    WarmStart,
    as_tensor,
    cold_start,
    num_fixed_steps_of_rows,
)
from amaml_tf.solvers.system import System
from amaml_tf.solvers.trajectory import Recorder

#: A cap on evaluations caps Jacobian products too: so many of each, and those of a first estimate.
_PRODUCTS_PER_EVALUATION = 4
_PRODUCTS_AT_FIRST = 50


class _Problem(NamedTuple):
    """The parts of a solve that do not change in the loop; `t0` and `t1` are `[B]`.

    `num_fixed` `[B]` is the number of steps of a fixed-step solver; None for an adaptive one.
    Without `every_stage`, only the states at the start of steps are recorded, if any are. With
    `fits`, the recorder is known to have room for the whole run.
    """

    solver: Method
    system: System
    t0: tf.Tensor
    t1: tf.Tensor
    num_fixed: tf.Tensor | None
    every_stage: bool
    fits: bool


class _Attempt(NamedTuple):
    """The next step to try, per row.

    `proposed` is the step size that the solver would take; `step_size` does not go beyond `t1`.
    `arrives` says whether the step ends at `t1`.
    """

    proposed: tf.Tensor
    step_size: tf.Tensor
    num_stages: tf.Tensor
    arrives: tf.Tensor


class _Verdict(NamedTuple):
    """The result of an attempted step, per row.

    A row whose attempt is not accepted fails if it is `lost`; `failure` is then its status.
    `reached` is the time at the end of an accepted step.
    """

    accepted: tf.Tensor
    next_step_size: tf.Tensor
    lost: tf.Tensor
    failure: tf.Tensor | int
    reached: tf.Tensor
    num_evaluations: tf.Tensor


class _Loop(NamedTuple):
    num_iterations: tf.Tensor
    state: tf.Tensor
    control: WarmStart
    diagnostics: Diagnostics
    recorder: Recorder | tuple[()]  # empty if nothing is recorded


def integrate(
    solver: Method,
    system: System,
    initial_time: Scalar,
    final_time: Scalar,
    initial_state: tf.Tensor,
    *,
    max_num_steps: int,
    capacity: int | None = None,
    every_stage: bool = True,
    warm_start: WarmStart | None = None,
) -> Solution:
    """Integrates every row of `system` from `initial_time` to `final_time`.

    Args:
        solver: the method.
        system: the problems.
        initial_time: float scalar or `[B]`.
        final_time: float scalar or `[B]`, not before `initial_time`.
        initial_state: `[B, P]` of static shape.
        max_num_steps: cap on the passes of the loop (accepted or rejected). Rows that need more
            end with STEP_LIMIT. It must be a Python int if the trajectory is recorded.
        capacity: number of states that the recorded trajectory keeps, more than a step has stages.
            None (default): nothing is recorded.
        every_stage: whether to record all stage states (default), or only the states at the start
            of steps, for which there must be room.
        warm_start: from an earlier solve of the same system, which is continued. Default None.

    Returns:
        A `Solution`. Rows that failed hold their last finite state.
    """
    state = tf.convert_to_tensor(initial_state)
    rows = tf.reduce_sum(tf.zeros_like(state), axis=-1)
    t0 = as_tensor(initial_time, state.dtype) + rows
    t1 = as_tensor(final_time, state.dtype) + rows
    control = cold_start(solver, state, t1 - t0) if warm_start is None else warm_start
    recorder: Recorder | tuple[()] = ()
    fits = True
    if capacity is not None:
        fits = not every_stage or max_num_steps * solver.max_num_stages <= capacity
        recorder = Recorder.empty(capacity, max_num_steps, state)
    loop = _Loop(tf.constant(0), state, control, nothing_done(state, t0), recorder)
    num_fixed = None
    if not solver.adaptive:
        num_fixed = num_fixed_steps_of_rows(solver.step_size, t1 - t0)
    problem = _Problem(solver, system, t0, t1, num_fixed, every_stage, fits)

    def condition(loop: _Loop) -> tf.Tensor:
        running = loop.diagnostics.status == RUNNING
        if solver.max_num_evaluations is not None:
            running &= _has_work_left(loop.diagnostics, solver.max_num_evaluations)
        return (loop.num_iterations < max_num_steps) & tf.reduce_any(running)

    def body(loop: _Loop) -> tuple[_Loop]:
        return (_advance(problem, loop),)

    (loop,) = tf.while_loop(condition, body, (loop,), maximum_iterations=max_num_steps)
    status = loop.diagnostics.status
    diagnostics = loop.diagnostics._replace(status=tf.where(status == RUNNING, STEP_LIMIT, status))
    trajectory = None
    if isinstance(loop.recorder, Recorder):
        trajectory = loop.recorder.finish(diagnostics.time, loop.state)
    return Solution(loop.state, diagnostics, trajectory, loop.control)


def _advance(problem: _Problem, loop: _Loop) -> _Loop:
    """Tries one step of every running row."""
    solver = problem.solver
    control, done, state, recorder = loop.control, loop.diagnostics, loop.state, loop.recorder
    active = done.status == RUNNING
    memory, products = solver.refresh(
        problem.system, done.time, state, control.memory, control.rejected, active
    )
    attempt = _attempt(problem, done, control, memory, active)
    rows = None
    if isinstance(recorder, Recorder):
        if not problem.fits:
            recorder = recorder.with_room(tf.reduce_max(attempt.num_stages))
        rows = recorder.stack.rows
    step = solver.step(
        problem.system,
        done.time,
        state,
        control.derivative,
        control.known,
        attempt.step_size,
        attempt.num_stages,
        rows if problem.every_stage else None,
        recorder.row if isinstance(recorder, Recorder) else 0,
    )
    judge = _judge_adaptive if solver.adaptive else _judge_fixed
    verdict = judge(problem, loop, active, attempt, step)
    accepted = verdict.accepted
    if isinstance(recorder, Recorder):
        taken = tf.where(accepted, attempt.step_size, 0)
        stages = tf.where(accepted, attempt.num_stages, 0)
        num_states = tf.reduce_max(stages) if problem.every_stage else tf.constant(1)
        rows = step.rows or recorder.stack.rows.write(recorder.row, state)
        recorder = recorder.record_step(done.time, taken, stages, num_states, rows)
    keep = accepted[:, tf.newaxis]
    return _Loop(
        num_iterations=loop.num_iterations + 1,
        state=tf.where(keep, step.state, state),
        control=WarmStart(
            step_size=verdict.next_step_size,
            derivative=tf.where(keep, step.derivative, step.start_derivative),
            known=tf.constant(solver.reuses_derivative),
            rejected=active & ~accepted,
            memory=memory,
        ),
        diagnostics=_diagnostics_after(problem, done, active, attempt, verdict, memory, products),
        recorder=recorder,
    )


def _attempt(
    problem: _Problem, done: Diagnostics, control: WarmStart, memory: Memory, active: tf.Tensor
) -> _Attempt:
    """Chooses the next step of every row; rows that are not running get step size 0."""
    solver, t0, t1 = problem.solver, problem.t0, problem.t1
    if problem.num_fixed is None:
        proposed = solver.limit_step_size(memory, control.step_size, ~control.known)
        arrives = done.time + 1.01 * proposed >= t1
        step_size = tf.where(arrives, t1 - done.time, proposed)
    else:
        # Steps are counted: the sum of 50,000 step sizes would drift in float32.
        step_size = proposed = (t1 - t0) / tf.cast(problem.num_fixed, t0.dtype)
        arrives = done.num_accepted_steps + 1 >= problem.num_fixed
    step_size = tf.where(active, step_size, 0)
    num_stages = tf.where(active, solver.plan(memory, step_size), 0)
    return _Attempt(proposed, step_size, num_stages, arrives)


def _judge_adaptive(
    problem: _Problem, loop: _Loop, active: tf.Tensor, attempt: _Attempt, step: Step
) -> _Verdict:
    """Compares the error of a step with the tolerances and chooses the next step size."""
    solver = problem.solver
    time, state, control = loop.diagnostics.time, loop.state, loop.control
    ratio = problem.system.error_ratio(step.error, state, step.state, solver.rtol, solver.atol)
    finite = tf.reduce_all(tf.math.is_finite(step.state), axis=-1) & tf.math.is_finite(ratio)
    accepted = active & finite & (ratio <= 1)
    factor = solver.step_size_factor(tf.where(finite, ratio, 1e30))
    longer = tf.maximum(attempt.proposed, attempt.step_size)
    tried = tf.where(attempt.arrives & accepted, longer, attempt.step_size)
    next_step_size = tf.where(active, factor * tried, control.step_size)
    # No step can succeed from a point where the derivative is not finite.
    lost = ~tf.reduce_all(tf.math.is_finite(step.start_derivative), axis=-1)
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
    """Accepts a step if the new state is finite."""
    number = tf.cast(loop.diagnostics.num_accepted_steps + 1, step.state.dtype)
    num_evaluations = attempt.num_stages
    if problem.solver.reuses_derivative:
        num_evaluations += tf.cast(active & ~loop.control.known, tf.int32)
    finite = tf.reduce_all(tf.math.is_finite(step.state), axis=-1)
    return _Verdict(
        accepted=active & finite,
        next_step_size=attempt.step_size,
        lost=~finite,
        failure=NON_FINITE,
        reached=problem.t0 + attempt.step_size * number,
        num_evaluations=num_evaluations,
    )


def _diagnostics_after(
    problem: _Problem,
    done: Diagnostics,
    active: tf.Tensor,
    attempt: _Attempt,
    verdict: _Verdict,
    memory: Memory,
    products: tf.Tensor,
) -> Diagnostics:
    """Returns the diagnostics after an attempted step."""
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


def _has_work_left(done: Diagnostics, most: int) -> tf.Tensor:
    products = _PRODUCTS_PER_EVALUATION * most + _PRODUCTS_AT_FIRST
    return (done.num_evaluations < most) & (done.num_jacobian_products < products)


def _smallest_step(time: tf.Tensor, interval: tf.Tensor) -> tf.Tensor:
    """Returns the step size at `time` at which rounding errors make a step useless."""
    resolution = float(np.finfo(time.dtype.as_numpy_dtype).eps)
    return 16 * resolution * tf.maximum(tf.abs(time), 1e-3 * tf.abs(interval))
