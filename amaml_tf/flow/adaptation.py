"""Adaptation as one differentiable operation, which joins the flow with its adjoint.

This file has no formulas. A `tf.GradientTape` around `adapt` gives the meta-gradient.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import tensorflow as tf

from amaml_tf.aliases import Scalar
from amaml_tf.episodes import Examples
from amaml_tf.errors import UsageError
from amaml_tf.flow.gradient_flow import GradientFlow
from amaml_tf.flow.vector_field import Constants, vector_field
from amaml_tf.functional.model import FunctionalModel, State
from amaml_tf.solvers.diagnostics import COMPLETED, NON_FINITE, AdjointDiagnostics, Diagnostics
from amaml_tf.solvers.method import Method


class Start(NamedTuple):
    """The initial states and the constants of the flows of B tasks.

    Attributes:
        adapted: `[B, P]`, u(0).
        held: `[B, Q]`, parameters that are not adapted.
        rates: learned rates, `[B, P]` or `[B, 1]`; `[B, 0]` if there are none.
    """

    adapted: tf.Tensor
    held: tf.Tensor
    rates: tf.Tensor


class Adaptation(NamedTuple):
    """The result of adaptation.

    Attributes:
        adapted: `[B, P]`, u(T); NaN in the rows that failed.
        diagnostics: of the forward solve, per task.
    """

    adapted: tf.Tensor
    diagnostics: Diagnostics


def adapt(
    flow: GradientFlow,
    function: FunctionalModel,
    state: State,
    support: Examples,
    start: Start,
    *,
    final_time: Scalar | None = None,
    probe: tf.Tensor | None = None,
    differentiable: bool = True,
) -> Adaptation:
    """Adapts B tasks to their support sets by a gradient flow.

    Args:
        flow: the inner training run.
        function: model and loss.
        state: values of the model's non-trainable variables (`function.state()`).
        support: (x, y) or (x, y, weight), task axis first.
        start: u(0) and the constants; all of them have gradients.
        final_time: scalar or `[B]`, replaces the flow's final time. It has no gradient: learned
            times are part of the rates, see `LearnedFlow`.
        probe: `[B, 4]` zeros. Its "gradient" on a tape holds the diagnostics of the backward pass,
            which the caller cannot get in another way: see `read_probe`.
        differentiable: whether to keep a trajectory for a tape.

    Returns:
        An `Adaptation`.
    """
    final_time = flow.final_time if final_time is None else final_time
    anchor = start.adapted if flow.proximal_weight else start.adapted[:, :0]
    if probe is None:
        probe = tf.zeros([tf.shape(start.adapted)[0], 4], start.adapted.dtype)
    if differentiable and flow.adjoint == "backsolve":
        return _backsolve(flow, function, state, support, Constants(*start[1:], anchor), start)

    @tf.custom_gradient
    def run(
        adapted: tf.Tensor,
        held: tf.Tensor,
        rates: tf.Tensor,
        anchor: tf.Tensor,
        probe: tf.Tensor,
    ) -> tuple[tuple[tf.Tensor, ...], Callable[..., tuple[tf.Tensor, ...]]]:
        del probe
        # Otherwise an outer tape would record the solver's loops and keep all their values.
        adapted, held, rates, anchor = map(tf.stop_gradient, (adapted, held, rates, anchor))
        constants = Constants(held, rates, anchor)
        system = vector_field(function, state, support, constants, flow.proximal_weight)
        if not differentiable:
            solution = flow.solve(system, adapted, final_time, record=False)
            return (solution.state, *solution.diagnostics), _no_backward
        solution, adjoint_of = flow.solve_with_adjoint(system, adapted, final_time, constants)
        arrived = (solution.diagnostics.status == COMPLETED)[:, tf.newaxis]

        def backward(cotangent: tf.Tensor, *_: tf.Tensor) -> tuple[tf.Tensor, ...]:
            adjoint = adjoint_of(tf.where(arrived, cotangent, 0))
            seen = adjoint.diagnostics
            columns = [tf.cast(column, cotangent.dtype) for column in seen]
            # NaN of a failed task must not reach other tasks through a sum: 0 * NaN is NaN.
            sound = arrived & (seen.status == COMPLETED)[:, tf.newaxis]
            bars = [tf.where(sound, bar, 0) for bar in (adjoint.state, *adjoint.constants)]
            return *bars, tf.stack(columns, axis=-1)

        return (solution.state, *solution.diagnostics), backward

    adapted, *fields = run(start.adapted, start.held, start.rates, anchor, probe)
    return _finish(adapted, Diagnostics(*fields))


def _no_backward(*_: tf.Tensor) -> tuple[tf.Tensor, ...]:
    raise UsageError(
        "Expected an adaptation that is not differentiated, as differentiable=False says, got a "
        "tape around it; leave the argument out."
    )


def _finish(adapted: tf.Tensor, diagnostics: Diagnostics) -> Adaptation:
    # A failed task must not look like a result, even if no error can be raised (under XLA).
    arrived = (diagnostics.status == COMPLETED)[:, tf.newaxis]
    return Adaptation(tf.where(arrived, adapted, float("nan")), diagnostics)


def read_probe(gradient: tf.Tensor) -> AdjointDiagnostics:
    """Returns the diagnostics of a backward pass from the gradient of the probe."""
    status, evaluations, products, growth = tf.unstack(gradient, axis=-1)
    return AdjointDiagnostics(
        status=tf.cast(status, tf.int32),
        num_evaluations=tf.cast(evaluations, tf.int32),
        num_vector_jacobian_products=tf.cast(products, tf.int32),
        growth=growth,
    )


def _backsolve(
    flow: GradientFlow,
    function: FunctionalModel,
    state: State,
    support: Examples,
    constants: Constants,
    start: Start,
) -> Adaptation:
    """Adapts with TFP's own gradient: all tasks are one problem, with one step size."""
    rows = start.adapted[:, 0] * 0

    def ode_fn(
        time: tf.Tensor, u: tf.Tensor, held: tf.Tensor, rates: tf.Tensor, anchor: tf.Tensor
    ) -> tf.Tensor:
        given = Constants(held, rates, anchor)
        system = vector_field(function, state, support, given, flow.proximal_weight)
        return system.derivative(time, u)

    results = flow.solver.solve(
        ode_fn, 0.0, start.adapted, [flow.final_time], constants=constants._asdict()
    )
    adapted = results.states[0]
    finite = tf.reduce_all(tf.math.is_finite(adapted), axis=-1)
    counts = results.diagnostics
    none = tf.zeros_like(rows, tf.int32)
    own = isinstance(flow.solver, Method)
    status = tf.where(finite & (counts.status == 0), COMPLETED, NON_FINITE)
    diagnostics = Diagnostics(
        status=status,
        time=tf.where(status == COMPLETED, rows + flow.final_time, rows),
        num_accepted_steps=none + (counts.num_accepted_steps if own else 0),
        num_rejected_steps=none + (counts.num_rejected_steps if own else 0),
        num_evaluations=none + tf.cast(counts.num_ode_fn_evaluations, tf.int32),
        num_jacobian_products=none + (counts.num_jacobian_products if own else 0),
        max_stages=none + (counts.max_stages if own else 0),
        spectral_radius=rows + (counts.spectral_radius if own else 0),
    )
    return _finish(adapted, diagnostics)
