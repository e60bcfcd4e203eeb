"""The recorded trajectory of a forward solve: its steps, and those of its states that are kept."""

from __future__ import annotations

from typing import NamedTuple

import tensorflow as tf

from amaml_tf.solvers.state_stack import Rows, StateStack


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
        stack: the states that were kept.
        times: `[M, B]`, the start of every step.
        step_sizes: `[M, B]`.
        num_stages: `[M, B]` int32, evaluations of each row in each step.
        offsets: `[M]` int32, evaluations before each step; a step counts those of its slowest row.
        num_steps: scalar int32; later entries of the arrays above are meaningless.
        final_time: `[B]`, the time reached.
        final_state: `[B, P]`.
    """

    stack: StateStack
    times: tf.Tensor
    step_sizes: tf.Tensor
    num_stages: tf.Tensor
    offsets: tf.Tensor
    num_steps: tf.Tensor
    final_time: tf.Tensor
    final_state: tf.Tensor

    def step(self, n: tf.Tensor) -> StepRecord:
        """Returns the record of step `n`, an int32 scalar."""
        columns = (self.times, self.step_sizes, self.num_stages, self.offsets)
        # Not `column[n]`: XLA would treat `n`, and all it depends on, as compile-time constants,
        # and would compile again for every batch.
        return StepRecord(*(tf.gather(column, n) for column in columns))

    @property
    def max_num_steps(self) -> int:
        """M."""
        return self.offsets.shape[0]


class Recorder(NamedTuple):
    """The parts of a `Trajectory` while they are being filled."""

    stack: StateStack
    times: tf.TensorArray
    step_sizes: tf.TensorArray
    num_stages: tf.TensorArray
    offsets: tf.TensorArray
    num_steps: tf.Tensor
    num_states: tf.Tensor

    @classmethod
    def empty(cls, capacity: int, max_num_steps: int, state: tf.Tensor) -> Recorder:
        """Returns buffers for `capacity` states like `state` and `max_num_steps` steps."""

        def array(dtype: tf.DType, shape: tf.TensorShape) -> tf.TensorArray:
            return tf.TensorArray(dtype, max_num_steps, element_shape=shape, clear_after_read=False)

        rows = state.shape[:1]
        return cls(
            stack=StateStack.empty(capacity, state),
            times=array(state.dtype, rows),
            step_sizes=array(state.dtype, rows),
            num_stages=array(tf.int32, rows),
            offsets=array(tf.int32, tf.TensorShape([])),
            num_steps=tf.constant(0),
            num_states=tf.constant(0),
        )

    @property
    def row(self) -> tf.Tensor:
        """The row of the next state, an int32 scalar."""
        return self.stack.row(self.num_states)

    def with_room(self, num_states: tf.Tensor) -> Recorder:
        """Returns a recorder with room for a step of `num_states` states."""
        stack = self.stack.with_room(self.num_steps, self.num_states, num_states)
        return self._replace(stack=stack)

    def record_step(
        self,
        time: tf.Tensor,
        step_size: tf.Tensor,
        num_stages: tf.Tensor,
        num_states: tf.Tensor | int,
        rows: Rows,
    ) -> Recorder:
        """Adds a step whose states are in `rows`; it counts only if a row advanced."""
        step = self.num_steps
        counts = tf.reduce_any(step_size > 0)
        return Recorder(
            stack=self.stack._replace(rows=rows),
            times=self.times.write(step, time),
            step_sizes=self.step_sizes.write(step, step_size),
            num_stages=self.num_stages.write(step, num_stages),
            offsets=self.offsets.write(step, self.num_states),
            num_steps=step + tf.cast(counts, tf.int32),
            num_states=self.num_states + tf.where(counts, num_states, 0),
        )

    def finish(self, final_time: tf.Tensor, final_state: tf.Tensor) -> Trajectory:
        """Returns the recorded `Trajectory`."""
        return Trajectory(
            stack=self.stack,
            times=self.times.stack(),
            step_sizes=self.step_sizes.stack(),
            num_stages=self.num_stages.stack(),
            offsets=self.offsets.stack(),
            num_steps=self.num_steps,
            final_time=final_time,
            final_state=final_state,
        )
