"""A recorded trajectory, read from its end to its start, recomputed where it did not fit."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import tensorflow as tf

from amaml_tf.solvers.one_step import OneStepSolver
from amaml_tf.solvers.system import System
from amaml_tf.solvers.trajectory import Trajectory, checkpoint_slot, checkpoint_stride


class Segment(NamedTuple):
    """Consecutive steps of a trajectory with every state at which the derivative was evaluated.

    Attributes:
        first: scalar int32, the first step.
        end: scalar int32, one past the last step.
        points: `[K + 1, B, P]`, stage states; those of step n begin at row `row(n)`.
        first_offset: scalar int32, the trajectory's offset at step `first`.
        trajectory: where times and step sizes are.
        final_state: `[B, P]`, the state at the end of the last step.
    """

    first: tf.Tensor
    end: tf.Tensor
    points: tf.Tensor
    first_offset: tf.Tensor
    trajectory: Trajectory
    final_state: tf.Tensor

    def row(self, step: tf.Tensor) -> tf.Tensor:
        """Returns the row of `points` with the state at the start of `step`."""
        return tf.gather(self.trajectory.offsets, step) - self.first_offset


def most_stages(solver: Any) -> int:
    """Returns the most evaluations in one step; 1 for solvers of TFP, see `solve_on_grid`."""
    return solver.max_num_stages if isinstance(solver, OneStepSolver) else 1


def fold_backwards(
    solver: OneStepSolver,
    system: System,
    trajectory: Trajectory,
    carry: Any,
    visit: Callable[[Segment, Any], Any],
) -> tuple[Any, tf.Tensor]:
    """Applies `carry = visit(segment, carry)` to the segments of `trajectory`, last one first.

    A run of at most K evaluations is one segment, the recorded one. A longer one is cut into
    segments of at most K evaluations that start, where possible, at a checkpoint, from which
    their states are recomputed; otherwise the steps between checkpoint and segment are taken
    again without keeping them.

    Returns:
        The last carry, and the evaluations of the derivative made for recomputing, `[B]`.
    """
    recorded = trajectory.num_points <= trajectory.capacity
    max_num_steps = trajectory.offsets.shape[0]
    always_recorded = max_num_steps * most_stages(solver) <= trajectory.capacity

    def one(end: Any, final_state: Any, evaluations: Any, carry: Any) -> tuple[Any, ...]:
        first, points, more = tf.constant(0), trajectory.points, tf.zeros_like(evaluations)
        if not trajectory.has_points:
            first, points, more = _recompute(solver, system, trajectory, end)
        elif not always_recorded:
            first, points, more = tf.cond(
                recorded,
                lambda: (first, points, more),
                lambda: _recompute(solver, system, trajectory, end),
            )
        offset = trajectory.step(first).offset
        segment = Segment(first, end, points, offset, trajectory, final_state)
        return first, tf.gather(points, 0), evaluations + more, visit(segment, carry)

    none = tf.zeros_like(trajectory.num_stages[0])
    _, _, evaluations, carry = tf.while_loop(
        lambda end, *_: end > 0,
        one,
        (trajectory.num_steps, trajectory.final_state, none, carry),
        maximum_iterations=max_num_steps,
    )
    return carry, evaluations


def _recompute(
    solver: OneStepSolver, system: System, trajectory: Trajectory, end: tf.Tensor
) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """Returns the first step of the segment that ends at `end`, its points, and evaluations."""
    capacity, offsets = trajectory.capacity, trajectory.offsets
    stride = checkpoint_stride(tf.maximum(trajectory.num_steps - 1, 0), capacity)
    steps = tf.range(offsets.shape[0])
    end_offset = tf.where(
        end == trajectory.num_steps,
        trajectory.num_points,
        tf.gather(offsets, tf.minimum(end, offsets.shape[0] - 1)),
    )
    too_early = (steps < end) & (end_offset - offsets > capacity)
    earliest = tf.reduce_sum(tf.cast(too_early, tf.int32))
    aligned = -(-earliest // stride) * stride
    first = tf.where(aligned < end, aligned, earliest)
    start = first // stride * stride

    state = tf.gather(trajectory.checkpoints, checkpoint_slot(start, capacity))
    first_offset = trajectory.step(first).offset
    points = tf.TensorArray(
        state.dtype, capacity + 1, element_shape=state.shape, clear_after_read=False
    )
    evaluations = tf.zeros_like(trajectory.num_stages[0])
    derivative = tf.zeros_like(state) if solver.adaptive else state[:, :0]
    if solver.adaptive:
        evaluations += 1

    def forward(n: Any, state: Any, derivative: Any, points: Any, evaluations: Any) -> Any:
        taken = trajectory.step(n)
        row = tf.where(n < first, capacity, taken.offset - first_offset)
        known = n > start
        step = solver.step(
            system,
            taken.time,
            state,
            derivative,
            known,
            taken.step_size,
            taken.num_stages,
            points,
            row,
        )
        state = tf.where((taken.step_size > 0)[:, tf.newaxis], step.state, state)
        evaluations += taken.num_stages
        return n + 1, state, step.derivative, step.points, evaluations

    _, _, _, points, evaluations = tf.while_loop(
        lambda n, *_: n < end,
        forward,
        (start, state, derivative, points, evaluations),
        maximum_iterations=offsets.shape[0],
    )
    return first, points.stack(), evaluations
