"""Fixed steps as an unrolled program, whose activations are kept for the backward pass.

The discrete adjoint evaluates every gradient again before it multiplies by the Hessian. What this
costs in time, a `tf.GradientTape` for each step saves, at the price of the memory of all of the
activations. The graph grows with the number of steps: use it for few. Vectors are split into the
parameters of the model once, not in every step: that would copy a large model several times.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
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
from amaml_tf.solvers.system import Split, System


class TapedStep(NamedTuple):
    """One step: its tape, the parts `[B, ...]` of the states at its start and end, and who took it.

    `taken` `[B]` says which rows; None if all rows did.
    """

    tape: tf.GradientTape
    start: list[tf.Tensor]
    end: list[tf.Tensor]
    taken: tf.Tensor | None


class Tapes(NamedTuple):
    """What the backward pass needs of a run.

    Attributes:
        split: the tape from the vectors to their parts.
        vectors: the initial state and the constants.
        parts: the problems, with those of the vectors.
        steps: in order.
        num_stages: evaluations of a step.
    """

    split: tf.GradientTape
    vectors: tuple[tf.Tensor, ...]
    parts: Split
    steps: list[TapedStep]
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
        system: the problems, with `split`.
        initial_state: `[B, P]`.
        final_time: float scalar or `[B]`.
        num_steps: cap on the steps. Rows that need more end with STEP_LIMIT.
        constants: the tensors that the system holds constant, which have gradients too.
    """
    rows = tf.zeros_like(initial_state[:, 0])
    interval = as_tensor(final_time, rows.dtype) + rows
    together = not tf.is_tensor(final_time)  # no row stops before the others
    if together:
        number = num_fixed_steps(solver.step_size, float(final_time))
        wanted = tf.zeros_like(rows, tf.int32) + number
        num_steps = min(num_steps, number)
    else:
        wanted = num_fixed_steps_of_rows(solver.step_size, interval)
    step_size = interval / tf.cast(wanted, rows.dtype)
    with tf.GradientTape(watch_accessed_variables=False) as split:
        split.watch([initial_state, *constants])
        parts = system.split(initial_state)
    state, steps = parts.state, []
    for n in range(num_steps):
        taken = None if together else n < wanted
        h = step_size if taken is None else tf.where(taken, step_size, 0)
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch([*state, *parts.constants])
            end = _step(solver, parts, n * step_size, state, h)
        steps.append(TapedStep(tape, state, end, taken))
        # A row that does not move may still meet an infinite derivative: 0 * inf is NaN.
        state = [_where(taken, new, old) for new, old in zip(end, state, strict=True)]
    tapes = Tapes(split, (initial_state, *constants), parts, steps, len(solver.b))
    joined = parts.layout.ravel(state, batch_ndims=1)
    finite = tf.reduce_all(tf.math.is_finite(joined), axis=-1)
    status = tf.where(wanted > num_steps, STEP_LIMIT, COMPLETED)
    status = tf.where(finite, status, NON_FINITE)
    count = tf.minimum(wanted, num_steps)
    diagnostics = nothing_done(joined, rows)._replace(
        status=status,
        time=tf.where(status == COMPLETED, interval, rows),
        num_accepted_steps=count,
        num_evaluations=count * tapes.num_stages,
        max_stages=tf.zeros_like(count) + tapes.num_stages,
    )
    return Solution(joined, diagnostics, None), tapes


def unrolled_adjoint(tapes: Tapes, cotangent: tf.Tensor) -> Adjoint:
    """Differentiates the steps by their tapes; `cotangent` `[B, P]` is λ(T).

    It gives what `discrete_adjoint` gives, to rounding. A tape can be used only once.
    """
    _, initial, layout, constants = tapes.parts
    state_bar = layout.unravel(cotangent)
    constants_bar = [tf.zeros_like(constant) for constant in constants]
    start = peak = tf.norm(cotangent, axis=-1)
    products = tf.zeros_like(start, tf.int32)
    for step in reversed(tapes.steps):
        found = _pulled_back(step.tape, step.end, [*step.start, *constants], state_bar)
        before, more = found[: len(initial)], found[len(initial) :]
        state_bar = [_where(step.taken, *bars) for bars in zip(before, state_bar, strict=True)]
        constants_bar = [
            bar + _where(step.taken, part, 0) for bar, part in zip(constants_bar, more, strict=True)
        ]
        peak = tf.maximum(peak, _norm(state_bar))
        products += tapes.num_stages * (1 if step.taken is None else tf.cast(step.taken, tf.int32))
    bars = _pulled_back(
        tapes.split, [*initial, *constants], tapes.vectors, [*state_bar, *constants_bar]
    )
    none = tf.zeros_like(products)
    growth = tf.maximum(tf.math.divide_no_nan(peak, start), 1)
    diagnostics = AdjointDiagnostics(none + COMPLETED, none, products, growth)
    return Adjoint(bars[0], tuple(bars[1:]), diagnostics)


def _step(
    solver: FixedStepSolver, parts: Split, time: tf.Tensor, state: list[tf.Tensor], h: tf.Tensor
) -> list[tf.Tensor]:
    slopes: list[list[tf.Tensor]] = []

    def moved(weights: list[float]) -> list[tf.Tensor]:
        used = [(w, slope) for w, slope in zip(weights, slopes, strict=False) if w]
        if not used:
            return state

        def of_part(u: tf.Tensor, *given: tf.Tensor) -> tf.Tensor:
            pairs = zip(used, given, strict=True)
            total = tf.add_n([slope if w == 1 else w * slope for (w, _), slope in pairs])
            return u + _column(h, u) * total

        return [of_part(*each) for each in zip(state, *(slope for _, slope in used), strict=True)]

    for row in solver.a.tolist():
        slope = parts.derivative(time + sum(row) * h, moved(row))
        slopes.append(slope)
    return moved(solver.b.tolist())


def _pulled_back(
    tape: tf.GradientTape,
    ends: Sequence[tf.Tensor],
    starts: Sequence[tf.Tensor],
    bars: Sequence[tf.Tensor],
) -> list[tf.Tensor]:
    found = tape.gradient(
        ends,
        starts,
        output_gradients=bars,
        unconnected_gradients=tf.UnconnectedGradients.ZERO,
    )
    return [tf.convert_to_tensor(each) for each in found]  # embeddings have sparse ones


def _where(taken: tf.Tensor | None, new: tf.Tensor, old: tf.Tensor | float) -> tf.Tensor:
    """Returns the rows of `new` `[B, ...]` that are `taken` (None: all), else those of `old`."""
    return new if taken is None else tf.where(_column(taken, new), new, old)


def _column(values: tf.Tensor, like: tf.Tensor) -> tf.Tensor:
    """Returns `values` `[B]` with as many dimensions as `like` has."""
    return tf.reshape(values, [-1] + [1] * (like.shape.rank - 1))


def _norm(parts: list[tf.Tensor]) -> tf.Tensor:
    """Returns the norm of each row of a state in parts, `[B]`."""
    rows = [tf.reshape(part, [-1, math.prod(part.shape[1:])]) for part in parts]
    return tf.sqrt(tf.add_n([tf.einsum("bi,bi->b", row, row) for row in rows]))
