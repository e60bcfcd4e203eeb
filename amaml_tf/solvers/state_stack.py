"""The states that a run keeps: checkpoints, and the stage states of its last segment above them.

One buffer of K rows is a stack. At its bottom lie *checkpoints*, states at the start of steps,
oldest first. Above them lie all other stage states since the newest checkpoint: the *segment* that
the backward pass can reverse without computing anything again. (The first stage state of a step is
the state at its start, so a checkpoint is also the first state of its segment.)

A step that finds no room above the segment starts a new one: its state becomes a checkpoint, and
the other states of the old segment are given up. Segments therefore have K, K - 1, K - 2, ...
states. When there is no room for a new checkpoint, an old one is given up. Every checkpoint has a
level, and one that has a later neighbour of higher level can be spared. If there is none, the
newest is replaced by one that is a level higher, so that all those of lower levels can be spared
from then on (online checkpointing: Wang, Moin, Iaccarino, SIAM J. Sci. Comput. 31 (2009) 1967). The
number of steps need not be known. If steps have one stage, no state is computed more than twice in
runs of up to K (K + 1) / 2 steps, and about three times in runs of up to 2 K² steps.
"""

from __future__ import annotations

from typing import NamedTuple

import tensorflow as tf

_BASE = 2**30  # the level of checkpoints that must stay


class Rows(NamedTuple):
    """The rows of the stack, wherever they lie in the buffer.

    Attributes:
        buffer: K + 1 states `[B, P]`. The last takes what is not kept.
        places: `[K + 1]` int32, the place of each row in the buffer.
    """

    buffer: tf.TensorArray
    places: tf.Tensor

    def read(self, row: tf.Tensor) -> tf.Tensor:
        """Returns the state in a row, an int32 scalar."""
        return self.buffer.read(tf.gather(self.places, row))

    def write(self, row: tf.Tensor, state: tf.Tensor) -> Rows:
        """Returns rows with `state` in `row`; row K is never read."""
        return Rows(self.buffer.write(tf.gather(self.places, row), state), self.places)

    @property
    def last(self) -> int:
        """K, the row whose state is not kept."""
        return self.places.shape[0] - 1


class StateStack(NamedTuple):
    """The stack.

    Attributes:
        rows: the states.
        steps: `[K + 1]` int32, the step that starts at each checkpoint.
        levels: `[K + 1]` int32, the level of each checkpoint.
        count: scalar int32, the number of checkpoints; later entries of the two are meaningless.
        shift: scalar int32, the row of a state of the segment minus its number in the run.
    """

    rows: Rows
    steps: tf.Tensor
    levels: tf.Tensor
    count: tf.Tensor
    shift: tf.Tensor

    @classmethod
    def empty(cls, capacity: int, state: tf.Tensor) -> StateStack:
        """Returns a stack for K = `capacity` states like `state`, with a checkpoint at step 0."""
        return cls._at_start(_buffer(state.dtype, capacity + 1, state.shape), capacity + 1)

    @classmethod
    def of(cls, states: tf.Tensor) -> StateStack:
        """Returns a full stack, whose segment is `states` `[K + 1, B, P]` but the last."""
        buffer = _buffer(states.dtype, states.shape[0], states.shape[1:])
        return cls._at_start(buffer.unstack(states), states.shape[0])

    @classmethod
    def _at_start(cls, buffer: tf.TensorArray, num_rows: int) -> StateStack:
        steps = tf.zeros([num_rows], tf.int32)
        rows, levels = Rows(buffer, tf.range(num_rows)), tf.fill([num_rows], _BASE)
        return cls(rows, steps, levels, count=tf.constant(1), shift=tf.constant(0))

    @property
    def capacity(self) -> int:
        """K, the number of states."""
        return self.rows.last

    @property
    def segment_start(self) -> tf.Tensor:
        """The first step of the segment, an int32 scalar."""
        return tf.gather(self.steps, self.count - 1)

    @property
    def checkpoint(self) -> tf.Tensor:
        """The state at the start of the segment."""
        return self.rows.read(self.count - 1)

    def row(self, number: tf.Tensor) -> tf.Tensor:
        """Returns the row of stage state `number` of the run, which belongs to the segment."""
        return self.shift + number

    def with_room(self, step: tf.Tensor, number: tf.Tensor, num_states: tf.Tensor) -> StateStack:
        """Returns a stack with room for the states of a step, in the segment or as a new one.

        Args:
            step: scalar int32, the step.
            number: scalar int32, its first stage state, counted from the start of the run.
            num_states: scalar int32, the number of its stage states, less than K.
        """
        capacity, indices = self.capacity, tf.range(self.capacity + 1)
        full = self.shift + number + num_states > capacity
        # After a step that was rejected, its checkpoint is the newest. It is made anew.
        again = full & (self.segment_start == step)
        level = tf.where(again, tf.gather(self.levels, self.count - 1), 0)
        count = self.count - tf.cast(again, tf.int32)

        def give_up_one(
            places: tf.Tensor,
            steps: tf.Tensor,
            levels: tf.Tensor,
            count: tf.Tensor,
            level: tf.Tensor,
        ) -> tuple[tf.Tensor, ...]:
            lower = (levels[:-1] < levels[1:]) & (indices[1:] < count)
            spare = tf.reduce_min(tf.where(lower, indices[:-1], count - 1))
            replaced = spare == count - 1
            level = tf.where(replaced, tf.maximum(level, tf.gather(levels, spare) + 1), level)
            # The place of the row given up becomes that of the highest row.
            order = tf.where(indices < spare, indices, indices + 1)
            order = tf.where(indices < capacity - 1, order, spare)
            order = tf.where(indices < capacity, order, capacity)
            columns = (tf.gather(column, order) for column in (places, steps, levels))
            return *columns, count - 1, level

        places, steps, levels, count, level = tf.while_loop(
            lambda places, steps, levels, count, level: full & (count + num_states > capacity),
            give_up_one,
            (self.rows.places, self.steps, self.levels, count, level),
            maximum_iterations=capacity,
        )
        new = full & (indices == count)
        return StateStack(
            rows=Rows(self.rows.buffer, places),
            steps=tf.where(new, step, steps),
            levels=tf.where(new, level, levels),
            count=tf.where(full, count + 1, count),
            shift=tf.where(full, count - number, self.shift),
        )

    def at_checkpoint(self, number: tf.Tensor) -> StateStack:
        """Returns the stack for a run that starts again at the newest checkpoint.

        Its stage state is `number` of the run. All checkpoints that there are stay.
        """
        kept = tf.range(self.capacity + 1) < self.count
        return self._replace(
            levels=tf.where(kept, _BASE, self.levels), shift=self.count - 1 - number
        )

    def without_segment(self) -> StateStack:
        """Returns the stack without its newest checkpoint."""
        return self._replace(count=self.count - 1)


def _buffer(dtype: tf.DType, size: int, shape: tf.TensorShape) -> tf.TensorArray:
    return tf.TensorArray(dtype, size, element_shape=shape, clear_after_read=False)
