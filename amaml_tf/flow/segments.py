"""Reads a recorded trajectory backwards, and recomputes the states that were not kept."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, TypeVar

import tensorflow as tf
import tensorflow_probability as tfp

from amaml_tf.solvers.method import Method
from amaml_tf.solvers.state_stack import Rows, StateStack
from amaml_tf.solvers.system import System
from amaml_tf.solvers.trajectory import Trajectory

T = TypeVar("T")


class Segment(NamedTuple):
    """Consecutive steps of a trajectory, with every state at which the derivative was evaluated.

    Attributes:
        first: scalar int32, the first step.
        end: scalar int32, one past the last step.
        rows: stage states; those of step n begin at row `row(n)`.
        shift: scalar int32, the row of a stage state minus its number in the run.
        trajectory: has the times and step sizes.
        final_state: `[B, P]`, the state at the end of the last step.
    """

    first: tf.Tensor
    end: tf.Tensor
    rows: Rows
    shift: tf.Tensor
    trajectory: Trajectory
    final_state: tf.Tensor

    def row(self, step: tf.Tensor) -> tf.Tensor:
        """Returns the row with the state at the start of `step`."""
        return tf.gather(self.trajectory.offsets, step) + self.shift


def most_stages(solver: Method | tfp.math.ode.Solver) -> int:
    """Returns the maximum of evaluations per step; 1 for solvers of TFP, see `solve_on_grid`."""
    return solver.max_num_stages if isinstance(solver, Method) else 1


def fold_backwards(
    solver: Method,
    system: System,
    trajectory: Trajectory,
    carry: T,
    visit: Callable[[Segment, T], T],
) -> tuple[T, tf.Tensor]:
    """Applies `carry = visit(segment, carry)` to the segments of `trajectory`, last first.

    The last segment is the one that the stack of states holds when the run ends. A segment before
    it is computed again, from the newest checkpoint on. On the way, the rows that are free by now
    take new checkpoints, as in the run itself.

    Returns:
        The last carry, and the number of evaluations of the derivative for recomputing, `[B]`.
    """
    none = tf.zeros_like(trajectory.num_stages[0])
    num_steps, stack = trajectory.num_steps, _owned(trajectory)
    if trajectory.max_num_steps * most_stages(solver) <= stack.capacity:
        first, final_state = tf.constant(0), trajectory.final_state
        segment = Segment(first, num_steps, stack.rows, stack.shift, trajectory, final_state)
        return visit(segment, carry), none

    def one(
        missing: tf.Tensor,
        end: tf.Tensor,
        final_state: tf.Tensor,
        stack: StateStack,
        evaluations: tf.Tensor,
        carry: T,
    ) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor, StateStack, tf.Tensor, T]:
        stack, more = _recompute(solver, system, trajectory, stack, end, missing)
        first = stack.segment_start
        segment = Segment(first, end, stack.rows, stack.shift, trajectory, final_state)
        carry = visit(segment, carry)
        state, stack = stack.checkpoint, stack.without_segment()
        return tf.constant(True), first, state, stack, evaluations + more, carry

    *_, evaluations, carry = tf.while_loop(
        lambda missing, end, *_: end > 0,
        one,
        (tf.constant(False), num_steps, trajectory.final_state, stack, none, carry),
        # One more, because the last segment may hold no more than a step that was not taken.
        maximum_iterations=trajectory.max_num_steps + 1,
    )
    return carry, evaluations


def _owned(trajectory: Trajectory) -> StateStack:
    """Returns the trajectory's stack for one backward pass to change."""
    stack = trajectory.stack
    if not tf.executing_eagerly():
        return stack
    # Without a graph, writing to a TensorArray changes it, and a tape may go backwards twice.
    states = stack.rows.buffer.stack()
    return stack._replace(rows=StateStack.of(states).rows._replace(places=stack.rows.places))


def _recompute(
    solver: Method,
    system: System,
    trajectory: Trajectory,
    stack: StateStack,
    end: tf.Tensor,
    missing: tf.Tensor,
) -> tuple[StateStack, tf.Tensor]:
    """Returns the stack with the segment that ends at step `end`, and the evaluations it took.

    If the segment is not `missing`, nothing is computed.
    """
    start = tf.where(missing, stack.segment_start, end)
    stack = stack.at_checkpoint(trajectory.step(stack.segment_start).offset)
    state = stack.checkpoint
    reuses = solver.reuses_derivative
    derivative = tf.zeros_like(state) if reuses else state[:, :0]
    evaluations = tf.zeros_like(trajectory.num_stages[0]) + tf.cast(missing & reuses, tf.int32)

    def forward(
        n: tf.Tensor,
        state: tf.Tensor,
        derivative: tf.Tensor,
        stack: StateStack,
        evaluations: tf.Tensor,
    ) -> tuple[tf.Tensor | StateStack, ...]:
        taken = trajectory.step(n)
        stack = stack.with_room(n, taken.offset, tf.reduce_max(taken.num_stages))
        step = solver.step(
            system,
            taken.time,
            state,
            derivative,
            n > start,
            taken.step_size,
            taken.num_stages,
            stack.rows,
            stack.row(taken.offset),
        )
        state = tf.where((taken.step_size > 0)[:, tf.newaxis], step.state, state)
        stack = stack._replace(rows=step.rows or stack.rows)
        return n + 1, state, step.derivative, stack, evaluations + taken.num_stages

    _, _, _, stack, evaluations = tf.while_loop(
        lambda n, *_: n < end,
        forward,
        (start, state, derivative, stack, evaluations),
        maximum_iterations=trajectory.max_num_steps,
    )
    return stack, evaluations
