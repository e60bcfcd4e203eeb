"""The number of states that a run keeps in memory."""

from __future__ import annotations

import tensorflow as tf
import tensorflow_probability as tfp

from amaml_tf.errors import UsageError
from amaml_tf.flow.segments import most_stages
from amaml_tf.solvers.tfp_solver import OneStepSolver

# Default size of one buffer of states, in bytes, and its bounds in states.
_BUFFER_BYTES = 2**27
_FEWEST_CHECKPOINTS, _MOST_CHECKPOINTS = 16, 4096
# Where the number of tasks is not known when the program is traced.
_ASSUMED_TASKS = 32


def capacity_of(
    solver: tfp.math.ode.Solver,
    max_num_steps: int | None,
    max_checkpoints: int | None,
    state: tf.Tensor,
) -> int:
    """Returns the number of rows of each buffer of a run, a power of two.

    Args:
        solver: the solver of the run.
        max_num_steps: cap on its steps; None for solvers of TFP.
        max_checkpoints: as in `GradientFlow`.
        state: `[B, P]`, what a row holds.

    Raises:
        UsageError: if `max_checkpoints` rows are too few for `max_num_steps` steps.
    """
    steps = _FEWEST_CHECKPOINTS if max_num_steps is None else max_num_steps
    needed = _power_of_two_from(steps**0.5)
    if max_checkpoints is not None:
        if max_checkpoints < needed:
            raise UsageError(
                f"Expected max_checkpoints to be at least {needed}, the square root of "
                f"the {steps} steps that the solver may take, got {max_checkpoints}. Give more "
                "checkpoints, or give the solver a lower max_num_steps."
            )
        return max_checkpoints
    num_tasks, size = state.shape
    row_bytes = max((num_tasks or _ASSUMED_TASKS) * size, 1) * state.dtype.size
    affordable = _BUFFER_BYTES // row_bytes
    fitting = min(max(affordable, _FEWEST_CHECKPOINTS), _MOST_CHECKPOINTS)
    fitting = 1 << (fitting.bit_length() - 1)
    everything = _power_of_two_from(steps * most_stages(solver))
    fixed = isinstance(solver, OneStepSolver) and solver.max_num_steps is None
    if fixed and everything > fitting:
        # The whole run will be recomputed: more rows than this needs would not help.
        return max(needed, _FEWEST_CHECKPOINTS)
    return max(min(fitting, everything), needed)


def _power_of_two_from(number: float) -> int:
    power = 2
    while power < number:
        power *= 2
    return power
