"""The recorded trajectory of a forward solve, of a fixed size for any number of steps.

The solver fills two buffers of K rows:

*points*: every state at which the derivative was evaluated, in order, for the first K evaluations.
The backward pass of a run that fits reads them and recomputes nothing.

*checkpoints*: the states at the start of steps. The number of steps is not known in advance, so the
buffer is thinned as it fills (online checkpointing; Wang, Moin, Iaccarino, SIAM J. Sci. Comput. 31
(2009) 1967). A step is kept while its number is a multiple of the *stride*, the smallest power of
two above n // K, where n is the latest step. Step n is written to the slot `n % K + n // K`. No
copying is needed: at any time the kept steps have different slots, and a new step overwrites only
steps that the current stride no longer keeps. This holds for up to K * K steps.
"""

from __future__ import annotations

from typing import NamedTuple

import tensorflow as tf


class StepRecord(NamedTuple):
    """One step: start `[B]`, size `[B]`, evaluations `[B]`, evaluations of all earlier steps."""

    time: tf.Tensor
    step_size: tf.Tensor
    num_stages: tf.Tensor
    offset: tf.Tensor


class Trajectory(NamedTuple):
    """The record of a forward solve of B rows in at most M steps, for the backward pass.

    A *step* here is one pass of the solver's loop in which at least one row advanced. Rows that did
    not advance have step size 0 in it.

    Attributes:
        checkpoints: `[K + 1, B, P]`, states at the start of the kept steps, by slot.
        points: `[K + 1, B, P]`, states where the derivative was evaluated, in order; `[1, B, P]`
            and meaningless if they were not kept.
        times: `[M, B]`, the start of every step.
        step_sizes: `[M, B]`.
        num_stages: `[M, B]` int32, evaluations of each row in each step.
        offsets: `[M]` int32, evaluations before each step; a step counts those of its slowest row.
        num_steps: scalar int32; later entries of the arrays above are meaningless.
        num_points: scalar int32, evaluations of the whole run, counted in the same way.
        final_time: `[B]`, the time reached.
        final_state: `[B, P]`.
    """

    checkpoints: tf.Tensor
    points: tf.Tensor
    times: tf.Tensor
    step_sizes: tf.Tensor
    num_stages: tf.Tensor
    offsets: tf.Tensor
    num_steps: tf.Tensor
    num_points: tf.Tensor
    final_time: tf.Tensor
    final_state: tf.Tensor

    def step(self, n: tf.Tensor) -> StepRecord:
        """Returns the record of step `n`, an int32 scalar."""
        columns = (self.times, self.step_sizes, self.num_stages, self.offsets)
        # Not `column[n]`: XLA would treat `n`, and all it depends on, as compile-time constants,
        # and would compile again for every batch.
        return StepRecord(*(tf.gather(column, n) for column in columns))

    @property
    def capacity(self) -> int:
        """K, the number of rows of each buffer."""
        return self.checkpoints.shape[0] - 1

    @property
    def has_points(self) -> bool:
        """Whether the points of the forward solve were kept."""
        return self.points.shape[0] > 1


class Recorder(NamedTuple):
    """The buffers of a `Trajectory` while they are being filled."""

    checkpoints: tf.TensorArray
    points: tf.TensorArray
    times: tf.TensorArray
    step_sizes: tf.TensorArray
    num_stages: tf.TensorArray
    offsets: tf.TensorArray
    num_steps: tf.Tensor
    num_points: tf.Tensor

    @classmethod
    def empty(
        cls, capacity: int, max_num_steps: int, state: tf.Tensor, keep_points: bool = True
    ) -> Recorder:
        """Returns buffers for `capacity` states like `state` and `max_num_steps` steps.

        Without `keep_points`, points will not be written: the run is known not to fit.
        """

        def array(size: int, dtype: tf.DType, shape: tf.TensorShape) -> tf.TensorArray:
            return tf.TensorArray(dtype, size, element_shape=shape, clear_after_read=False)

        rows = state.shape[:1]
        return cls(
            # The last row, one more than requested, takes the states that are not kept.
            checkpoints=array(capacity + 1, state.dtype, state.shape),
            points=array(capacity + 1 if keep_points else 1, state.dtype, state.shape),
            times=array(max_num_steps, state.dtype, rows),
            step_sizes=array(max_num_steps, state.dtype, rows),
            num_stages=array(max_num_steps, tf.int32, rows),
            offsets=array(max_num_steps, tf.int32, tf.TensorShape([])),
            num_steps=tf.constant(0),
            num_points=tf.constant(0),
        )

    def record_step(
        self,
        capacity: int,
        time: tf.Tensor,
        state: tf.Tensor,
        step_size: tf.Tensor,
        num_stages: tf.Tensor,
        points: tf.TensorArray | None,
    ) -> Recorder:
        """Adds a step that began at `state`; it counts only if a row advanced (`step_size` > 0)."""
        step = self.num_steps
        counts = tf.reduce_any(step_size > 0)
        more_points = tf.where(counts, tf.reduce_max(num_stages), 0)
        return Recorder(
            checkpoints=self.checkpoints.write(checkpoint_slot(step, capacity), state),
            points=self.points if points is None else points,
            times=self.times.write(step, time),
            step_sizes=self.step_sizes.write(step, step_size),
            num_stages=self.num_stages.write(step, num_stages),
            offsets=self.offsets.write(step, self.num_points),
            num_steps=step + tf.cast(counts, tf.int32),
            num_points=self.num_points + more_points,
        )

    def finish(self, final_time: tf.Tensor, final_state: tf.Tensor) -> Trajectory:
        """Returns the recorded `Trajectory`."""
        return Trajectory(
            checkpoints=self.checkpoints.stack(),
            points=self.points.stack(),
            times=self.times.stack(),
            step_sizes=self.step_sizes.stack(),
            num_stages=self.num_stages.stack(),
            offsets=self.offsets.stack(),
            num_steps=self.num_steps,
            num_points=self.num_points,
            final_time=final_time,
            final_state=final_state,
        )


def checkpoint_stride(step: tf.Tensor, capacity: int) -> tf.Tensor:
    """Returns the smallest power of two above `step // capacity`, an int32 scalar."""
    bits = step // capacity
    for shift in (1, 2, 4, 8, 16):
        bits |= tf.bitwise.right_shift(bits, shift)
    return bits + 1


def checkpoint_slot(step: tf.Tensor, capacity: int) -> tf.Tensor:
    """Returns the row for the start of `step`, or `capacity` if the step is not kept.

    `capacity` must be a power of two: a multiple of every stride.
    """
    kept = step % checkpoint_stride(step, capacity) == 0
    return tf.where(kept, step % capacity + step // capacity, capacity)
