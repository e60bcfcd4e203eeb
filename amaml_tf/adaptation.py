"""Adaptation as one differentiable operation: joins the flow with its adjoint.

Holds no formulas. An ordinary `tf.GradientTape` around `adapt` gives the meta-gradient.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import tensorflow as tf

from amaml_tf.adjoint import AdjointDiagnostics
from amaml_tf.functional import FunctionalModel
from amaml_tf.gradient_flow import Constants, GradientFlow, vector_field
from amaml_tf.solvers.diagnostics import COMPLETED, Diagnostics
from amaml_tf.solvers.one_step import OneStepSolver


class Start(NamedTuple):
    """Where the flows of B tasks start.

    Attributes:
        adapted: `[B, P]`, u(0).
        held: `[B, Q]`, parameters that are not adapted.
        rates: `[B, P]`, `[B, 1]` or, without learned rates, `[B, 0]`.
    """

    adapted: tf.Tensor
    held: tf.Tensor
    rates: tf.Tensor


class Adaptation(NamedTuple):
    """What adaptation gives.

    Attributes:
        adapted: `[B, P]`, u(T); NaN in the rows that failed, unless they are to be dropped.
        diagnostics: of the forward solve, per task.
    """

    adapted: tf.Tensor
    diagnostics: Diagnostics


def adapt(
    flow: GradientFlow,
    function: FunctionalModel,
    state: list[tf.Tensor],
    support: tuple[Any, Any],
    start: Start,
    *,
    final_time: Any = None,
    probe: tf.Tensor | None = None,
    differentiable: bool = True,
) -> Adaptation:
    """Adapts B tasks to their support sets by a gradient flow.

    Args:
        flow: how.
        function: model and loss.
        state: values of the model's non-trainable variables (`function.state()`).
        support: (x, y), task axis first.
        start: u(0) and constants; gradients flow to all of them.
        final_time: scalar, in place of the flow's. No gradient flows to it: learned times are
            part of the rates, see `AdjointMAML`.
        probe: `[B, 4]` zeros. Its "gradient" on a tape brings the diagnostics of the backward
            pass to the caller, who has no other way to see them: see `read_probe`.
        differentiable: whether a trajectory must be kept for a tape.

    Returns:
        An `Adaptation`.
    """
    final_time = flow.final_time if final_time is None else final_time
    anchor = start.adapted if flow.proximal_weight else start.adapted[:, :0]
    if probe is None:
        probe = tf.zeros([start.adapted.shape[0] or 1, 4], start.adapted.dtype)
    if differentiable and flow.adjoint == "backsolve":
        return _backsolve(flow, function, state, support, Constants(*start[1:], anchor), start)

    @tf.custom_gradient
    def run(adapted: Any, held: Any, rates: Any, anchor: Any, probe: Any) -> Any:
        del probe
        # Without this an outer tape would record the solver's loops, and keep all they compute.
        adapted, held, rates, anchor = map(tf.stop_gradient, (adapted, held, rates, anchor))
        constants = Constants(held, rates, anchor)
        system = vector_field(function, state, support, constants, flow.proximal_weight)
        solution = flow.solve(system, adapted, final_time, record=differentiable)
        arrived = (solution.diagnostics.status == COMPLETED)[:, tf.newaxis]

        def backward(cotangent: Any, *_: Any) -> Any:
            cotangent = tf.where(arrived, cotangent, 0)
            adjoint = flow.adjoint_of(system, solution, cotangent, constants)
            seen = adjoint.diagnostics
            columns = [tf.cast(column, cotangent.dtype) for column in seen]
            # What is NaN in a failed task must not reach the others through a sum: 0 * NaN is NaN.
            sound = arrived & (seen.status == COMPLETED)[:, tf.newaxis]
            bars = [tf.where(sound, bar, 0) for bar in (adjoint.state, *adjoint.constants)]
            return *bars, tf.stack(columns, axis=-1)

        return (solution.state, *solution.diagnostics), backward

    adapted, *fields = run(start.adapted, start.held, start.rates, anchor, probe)
    return _finish(flow, adapted, Diagnostics(*fields))


def _finish(flow: GradientFlow, adapted: tf.Tensor, diagnostics: Diagnostics) -> Adaptation:
    if flow.on_failure == "raise":
        # Where nobody can raise (under XLA), a failure must not pass for a result.
        arrived = (diagnostics.status == COMPLETED)[:, tf.newaxis]
        adapted = tf.where(arrived, adapted, float("nan"))
    return Adaptation(adapted, diagnostics)


def read_probe(gradient: tf.Tensor) -> AdjointDiagnostics:
    """Returns the diagnostics that a backward pass left as the gradient of the probe."""
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
    state: list[tf.Tensor],
    support: tuple[Any, Any],
    constants: Constants,
    start: Start,
) -> Adaptation:
    """The same flow, differentiated by TFP: all tasks are one problem, with one step size."""
    rows = start.adapted[:, 0] * 0

    def ode_fn(time: Any, u: Any, held: Any, rates: Any, anchor: Any) -> Any:
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
    own = isinstance(flow.solver, OneStepSolver)
    status = tf.where(finite & (counts.status == 0), COMPLETED, -1)
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
    return _finish(flow, adapted, diagnostics)
