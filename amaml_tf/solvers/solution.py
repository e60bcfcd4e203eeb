"""The result of a solve, warm and cold starts, and the number of fixed steps."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import tensorflow as tf

from amaml_tf.errors import UsageError
from amaml_tf.solvers.diagnostics import Diagnostics
from amaml_tf.solvers.method import MOST_STEPS, Memory, Method
from amaml_tf.solvers.trajectory import Trajectory

# A fixed step may be longer than requested by this fraction: 0.3 / 0.1 is three steps, not four.
_STEP_COUNT_SLACK = 1e-5


class Solution(NamedTuple):
    """The state reached `[B, P]`, diagnostics, the trajectory if recorded, and a warm start."""

    state: tf.Tensor
    diagnostics: Diagnostics
    trajectory: Trajectory | None
    warm_start: WarmStart | None = None

    @property
    def recorded(self) -> Trajectory:
        """The trajectory.

        Raises:
            UsageError: if it was not recorded.
        """
        if self.trajectory is None:
            raise UsageError("Expected a recorded trajectory, got none; pass record=True.")
        return self.trajectory


class WarmStart(NamedTuple):
    """What a solve knows when it ends: a later solve can continue from it.

    Attributes:
        step_size: `[B]`, the next step size to try.
        derivative: `[B, P]`, f at the current state (`[B, 0]` if the solver does not reuse it).
        known: bool scalar, whether `derivative` has been evaluated.
        rejected: bool `[B]`, whether the last attempt was rejected or none was made.
        memory: the memory of the method.
    """

    step_size: tf.Tensor
    derivative: tf.Tensor
    known: tf.Tensor
    rejected: tf.Tensor
    memory: Memory


def cold_start(solver: Method, state: tf.Tensor, interval: tf.Tensor) -> WarmStart:
    """Returns the `WarmStart` of a run from `state` over `interval`, before any evaluation."""
    rows = tf.zeros_like(state[:, 0])
    first = interval
    if solver.adaptive and solver.first_step_size is not None:
        first = rows + solver.first_step_size
    return WarmStart(
        step_size=rows + first,
        derivative=tf.zeros_like(state) if solver.reuses_derivative else state[:, :0],
        known=tf.constant(False),
        rejected=rows >= 0,
        memory=solver.initial_memory(state),
    )


def as_tensor(value: npt.ArrayLike | tf.Tensor, dtype: tf.DType) -> tf.Tensor:
    """Returns `value` as a tensor of `dtype`; Python numbers are not rounded to float32."""
    return tf.cast(value, dtype) if tf.is_tensor(value) else tf.convert_to_tensor(value, dtype)


def num_fixed_steps(step_size: float, interval: float) -> int:
    """Returns the number of equal steps, none longer than `step_size`, that cover `interval`.

    Raises:
        UsageError: these are more than `MOST_STEPS`.
    """
    number = interval / step_size * (1 - _STEP_COUNT_SLACK)
    if not number <= MOST_STEPS:
        raise UsageError(
            f"Expected a time of at most {MOST_STEPS} steps of {step_size:g}, got {interval:g}; "
            "choose a shorter time, or longer steps."
        )
    return max(int(np.ceil(number)), 1)


def num_fixed_steps_of_rows(step_size: float, interval: tf.Tensor) -> tf.Tensor:
    """Returns the same for intervals that are known only at run time, int32 of their shape."""
    ratio = tf.cast(interval, tf.float64) / step_size
    return tf.maximum(tf.cast(tf.math.ceil(ratio * (1 - _STEP_COUNT_SLACK)), tf.int32), 1)
