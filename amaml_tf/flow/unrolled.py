"""Fixed steps as an unrolled program, whose activations are kept for the backward pass.

The discrete adjoint evaluates every gradient again before it multiplies by the Hessian. What this
costs in time, a `tf.GradientTape` for each step saves, at the price of the memory of all of the
activations. The graph grows with the number of steps: use it for few.
"""

from __future__ import annotations

from typing import NamedTuple

import tensorflow as tf

from amaml_tf.aliases import Scalar
from amaml_tf.flow.adjoint import Adjoint, Constants
from amaml_tf.solvers.diagnostics import (
    COMPLETED,
    NON_FINITE,
    STEP_LIMIT,
    AdjointDiagnostics,
    nothing_done,
)
from amaml_tf.solvers.fixed_step import FixedStepSolver
from amaml_tf.solvers.solution import (
    Solution,
    as_tensor,
    num_fixed_steps,
    num_fixed_steps_of_rows,
)
from amaml_tf.solvers.system import System


class TapedStep(NamedTuple):
    """One step: its tape, the states `[B, P]` at its start and end, and which rows took it.

    `taken` is None if all rows did.
    """

    tape: tf.GradientTape
    start: tf.Tensor
    end: tf.Tensor
    taken: tf.Tensor | None


class Tapes(NamedTuple):
    """The steps of a run, what else the tapes watch, and the evaluations of a step."""

    steps: list[TapedStep]
    constants: Constants
    num_stages: int


def unroll(
    solver: FixedStepSolver,
    system: System,
    initial_state: tf.Tensor,
    final_time: Scalar,
    num_steps: int,
    constants: Constants,
) -> tuple[Solution, Tapes]:
    """Solves `system` from time 0 as `integrate` does, and keeps a tape of every step.

    Args:
        solver: the method.
        system: the problems.
        initial_state: `[B, P]`.
        final_time: float scalar or `[B]`.
        num_steps: cap on the steps. Rows that need more end with STEP_LIMIT.
        constants: the tensors that the system holds constant, which have gradients too.
    """
    state = tf.convert_to_tensor(initial_state)
    rows = tf.zeros_like(state[:, 0])
    interval = as_tensor(final_time, state.dtype) + rows
    together = not tf.is_tensor(final_time)  # no row stops before the others
    if together:
        number = num_fixed_steps(solver.step_size, float(final_time))
        wanted = tf.zeros_like(rows, tf.int32) + number
        num_steps = min(num_steps, number)
    else:
        wanted = num_fixed_steps_of_rows(solver.step_size, interval)
    step_size = interval / tf.cast(wanted, state.dtype)
    steps = []
    for n in range(num_steps):
        taken = None if together else n < wanted
        h = step_size if taken is None else tf.where(taken, step_size, 0)
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch([state, *constants])
            end = _step(solver, system, n * step_size, state, h)
        steps.append(TapedStep(tape, state, end, taken))
        # A row that does not move may still meet an infinite derivative: 0 * inf is NaN.
        state = _where(taken, end, state)
    stages = len(solver.b)
    finite = tf.reduce_all(tf.math.is_finite(state), axis=-1)
    status = tf.where(wanted > num_steps, STEP_LIMIT, COMPLETED)
    status = tf.where(finite, status, NON_FINITE)
    count = tf.minimum(wanted, num_steps)
    diagnostics = nothing_done(state, rows)._replace(
        status=status,
        time=tf.where(status == COMPLETED, interval, rows),
        num_accepted_steps=count,
        num_evaluations=count * stages,
        max_stages=tf.zeros_like(count) + stages,
    )
    return Solution(state, diagnostics, None), Tapes(steps, constants, stages)


def unrolled_adjoint(tapes: Tapes, cotangent: tf.Tensor) -> Adjoint:
    """Differentiates the steps by their tapes; `cotangent` `[B, P]` is λ(T).

    It gives what `discrete_adjoint` gives, to rounding. A tape can be used only once.
    """
    constants_bar = [tf.zeros_like(constant) for constant in tapes.constants]
    start = peak = tf.norm(cotangent, axis=-1)
    products = tf.zeros_like(start, tf.int32)
    for step in reversed(tapes.steps):
        state_bar, *more = step.tape.gradient(
            step.end,
            [step.start, *tapes.constants],
            output_gradients=cotangent,
            unconnected_gradients=tf.UnconnectedGradients.ZERO,
        )
        cotangent = _where(step.taken, state_bar, cotangent)
        constants_bar = [
            bar + _where(step.taken, part, 0) for bar, part in zip(constants_bar, more, strict=True)
        ]
        peak = tf.maximum(peak, tf.norm(cotangent, axis=-1))
        products += tapes.num_stages * (1 if step.taken is None else tf.cast(step.taken, tf.int32))
    none = tf.zeros_like(products)
    growth = tf.maximum(tf.math.divide_no_nan(peak, start), 1)
    diagnostics = AdjointDiagnostics(none + COMPLETED, none, products, growth)
    return Adjoint(cotangent, tuple(constants_bar), diagnostics)


def _step(
    solver: FixedStepSolver, system: System, time: tf.Tensor, state: tf.Tensor, h: tf.Tensor
) -> tf.Tensor:
    slopes: list[tf.Tensor] = []

    def moved(weights: list[float]) -> tf.Tensor:
        parts = [
            slope if w == 1 else w * slope for w, slope in zip(weights, slopes, strict=False) if w
        ]
        return state + h[:, tf.newaxis] * tf.add_n(parts) if parts else state

    for row in solver.a.tolist():
        slope = system.derivative(time + sum(row) * h, moved(row))
        slopes.append(slope)
    return moved(solver.b.tolist())


def _where(taken: tf.Tensor | None, new: tf.Tensor, old: tf.Tensor | float) -> tf.Tensor:
    """Returns the rows of `new` `[B, P]` that are `taken` (None: all), and else those of `old`."""
    return new if taken is None else tf.where(taken[:, tf.newaxis], new, old)
