"""Reads a recorded trajectory backwards, and recomputes the parts that did not fit."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, TypeVar

import tensorflow as tf
import tensorflow_probability as tfp

from amaml_tf.solvers.method import Method
from amaml_tf.solvers.system import System
from amaml_tf.solvers.trajectory import Trajectory, checkpoint_slot, checkpoint_stride

T = TypeVar("T")


class Segment(NamedTuple):
    """Consecutive steps of a trajectory, with every state at which the derivative was evaluated.

    Attributes:
        first: scalar int32, the first step.
        end: scalar int32, one past the last step.
        points: `[K + 1, B, P]`, stage states; those of step n begin at row `row(n)`.
        first_offset: scalar int32, the trajectory's offset at step `first`.
        trajectory: has the times and step sizes.
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

    A run of at most K evaluations is one segment, the recorded one. A longer run is divided into
    segments of at most K evaluations, which are recomputed. If possible, a segment starts at a
    checkpoint. Otherwise the steps from the checkpoint before it to its start are also computed
    again, but not kept.

    Returns:
        The last carry, and the number of evaluations of the derivative for recomputing, `[B]`.
    """
    recorded = trajectory.num_points <= trajectory.capacity
    max_num_steps = trajectory.offsets.shape[0]
    always_recorded = max_num_steps * most_stages(solver) <= trajectory.capacity

    def one(
        end: tf.Tensor, final_state: tf.Tensor, evaluations: tf.Tensor, carry: T
    ) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor, T]:
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


def _first_step(trajectory: Trajectory, end: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """Returns the first step of the segment that ends at `end`, and the step of its checkpoint."""
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
    return first, start


def _recompute(
    solver: Method, system: System, trajectory: Trajectory, end: tf.Tensor
) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """Returns the first step, points and evaluations of the segment that ends at `end`."""
    capacity, offsets = trajectory.capacity, trajectory.offsets
    first, start = _first_step(trajectory, end)
    state = tf.gather(trajectory.checkpoints, checkpoint_slot(start, capacity))
    first_offset = trajectory.step(first).offset
    points = tf.TensorArray(
        state.dtype, capacity + 1, element_shape=state.shape, clear_after_read=False
    )
    evaluations = tf.zeros_like(trajectory.num_stages[0])
    derivative = tf.zeros_like(state) if solver.adaptive else state[:, :0]
    if solver.adaptive:
        evaluations += 1

    def forward(
        n: tf.Tensor,
        state: tf.Tensor,
        derivative: tf.Tensor,
        points: tf.TensorArray,
        evaluations: tf.Tensor,
    ) -> tuple[tf.Tensor | tf.TensorArray, ...]:
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
