"""The number of states that a run keeps in memory."""

from __future__ import annotations

import math
import os
import pathlib

import tensorflow as tf
import tensorflow_probability as tfp

from amaml_tf.errors import UsageError
from amaml_tf.flow.segments import most_stages
from amaml_tf.solvers.tfp_solver import OneStepSolver

# With this many states of all tasks, runs of 80 evaluations compute none more than twice. A solver
# and its adjoint work with as many again, so that all is about 24 states.
_FEWEST_STATES = 13
# Where more than these fit, in bytes: all states of a run of known length, or else this much, as
# XLA clears a buffer even if a run turns out to be short.
_KNOWN_LENGTH_BYTES, _UNKNOWN_LENGTH_BYTES = 2**27, 2**23
# Vectors of the size of a state that a solver and its adjoint work with, roughly.
_WORK_STATES = 16
# The limit of a container under Linux, in bytes, or "max".
_LIMIT_OF_CONTAINER = pathlib.Path("/sys/fs/cgroup/memory.max")
#: Where the number of tasks is not known when the program is traced.
ASSUMED_TASKS = 32


def capacity_of(
    solver: tfp.math.ode.Solver,
    max_num_steps: int | None,
    max_checkpoints: int | None,
    memory_budget: float | None,
    state: tf.Tensor,
    copies: int = 1,
) -> int:
    """Returns the number of states that a run keeps, of all tasks together.

    Args:
        solver: the solver of the run.
        max_num_steps: cap on its steps; None for solvers of TFP.
        max_checkpoints: as in `GradientFlow`.
        memory_budget: as in `GradientFlow`.
        state: `[B, P]`, what is kept.
        copies: runs that share the memory.

    Raises:
        UsageError: if too few states are allowed.
    """
    num_tasks, size = state.shape
    num_tasks = copies * (num_tasks or ASSUMED_TASKS)
    state_bytes = max(num_tasks * size, 1) * state.dtype.size
    least = _fewest_states(solver)
    longest = (max_num_steps or _FEWEST_STATES) * most_stages(solver)
    fixed = isinstance(solver, OneStepSolver) and solver.max_num_steps is None
    if max_checkpoints is not None:
        states = max_checkpoints
        _refuse_too_few("max_checkpoints", max_checkpoints, states, least, 1)
    elif memory_budget is not None:
        states = int(memory_budget * 2**20 // state_bytes)
        _refuse_too_few("memory_budget", memory_budget, states, least, state_bytes / 2**20)
    else:
        states = _default_states(longest, fixed, least, state_bytes)
    return min(states, max(longest, least))


def refuse_too_many(states: int, state: tf.Tensor, copies: int = 1) -> None:
    """Raises an error if the machine's memory cannot hold a run; GPUs are not asked.

    Raises:
        UsageError: if the states to keep and to work with need more than the machine has.
    """
    num_tasks, size = state.shape
    if num_tasks is None or tf.config.list_physical_devices("GPU"):
        return
    num_tasks *= copies
    installed = _memory_of_the_machine()
    needed = (states + _WORK_STATES) * num_tasks * size * state.dtype.size
    if needed > installed:
        raise UsageError(
            f"Expected a run that fits into the {installed / 2**30:.1f} GiB of this machine, got "
            f"{num_tasks} tasks with {size:,} adapted parameters, which need about "
            f"{needed / 2**30:.1f} GiB: {states} states that are kept and {_WORK_STATES} to work "
            "with. Use smaller batches of tasks, adapt fewer layers (adapted_layers), or keep "
            "fewer states (max_checkpoints)."
        )


def _memory_of_the_machine() -> int:
    """Returns the bytes that are installed, or that the container may use."""
    installed = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    try:
        limit = _LIMIT_OF_CONTAINER.read_text(encoding="ascii").strip()
    except OSError:
        return installed
    return min(installed, int(limit)) if limit.isdigit() else installed


def _default_states(longest: int, fixed: bool, least: int, state_bytes: int) -> int:
    affordable = (_KNOWN_LENGTH_BYTES if fixed else _UNKNOWN_LENGTH_BYTES) // state_bytes
    if fixed and longest > affordable:
        # Enough that no state is computed more than twice.
        affordable = min(affordable, math.isqrt(2 * longest) + 1 + least)
    return max(affordable, _FEWEST_STATES, 2 * least)


def _fewest_states(solver: tfp.math.ode.Solver) -> int:
    """Returns the fewest states with which any run of `solver` can be reversed."""
    if not isinstance(solver, OneStepSolver):
        return 2
    return 1 + most_stages(solver.bounded(2))


def _refuse_too_few(name: str, given: float, states: int, least: int, size: float) -> None:
    if states < least:
        raise UsageError(
            f"Expected {name} to be at least {math.ceil(least * size)}, for one step of the solver "
            f"and its checkpoint, got {given:g}. Give more, a solver with fewer stages, or smaller "
            "batches of tasks."
        )
