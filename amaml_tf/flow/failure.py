"""Checks whether the adaptation of a task failed, and makes the error message."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Iterator

import tensorflow as tf

from amaml_tf.aliases import Scalar
from amaml_tf.errors import AdaptationError
from amaml_tf.functional import execution
from amaml_tf.solvers.diagnostics import (
    COMPLETED,
    NON_FINITE,
    STEP_LIMIT,
    STEP_TOO_SMALL,
    Diagnostics,
)

_REASONS = {
    NON_FINITE: "values became infinite or NaN. Look for NaN in its support set, for a loss that "
    "is unbounded below, for weights that are all 0, and for examples of weight 0 with a loss that "
    "cannot leave them out; otherwise a smaller step size, rtol or final_time helps",
    STEP_LIMIT: "the solver used all the steps it may take. A looser rtol, a smaller final_time, "
    "a larger max_num_steps or, for long runs, RungeKuttaChebyshev helps",
    STEP_TOO_SMALL: "no step was small enough for the tolerance. Look for a loss that is not "
    "smooth, or is unbounded below; otherwise a looser rtol or float64 helps",
}
_START = "Adaptation failed for "


def message(diagnostics: Diagnostics, final_time: Scalar) -> tf.Tensor:
    """Returns a scalar string tensor: the first task of the batch that failed, when and why."""
    failed = diagnostics.status != COMPLETED
    first = tf.argmax(failed)
    codes = tf.constant(list(_REASONS), tf.int32)
    reason = tf.constant(list(_REASONS.values()))[tf.argmax(codes == diagnostics.status[first])]
    return tf.strings.format(
        _START + "task {} of the batch ({} of {} tasks failed) at time {} of {}: {}.",
        (
            first,
            tf.reduce_sum(tf.cast(failed, tf.int32)),
            tf.size(failed),
            diagnostics.time[first],
            tf.cast(final_time, diagnostics.time.dtype),
            reason,
        ),
    )


def check(diagnostics: Diagnostics, final_time: Scalar) -> list[tf.Operation]:
    """Raises `AdaptationError` if a task failed; in a graph, returns an assertion to depend on.

    Assertions have no effect under XLA: call this outside of the compiled function.
    """
    if execution.inside_xla():
        return []  # XLA knows neither assertions nor strings
    return _require(diagnostics.status == COMPLETED, lambda: message(diagnostics, final_time))


def check_losses(losses: tf.Tensor) -> list[tf.Operation]:
    """The same for query losses, `[B]`: raises if one is infinite or NaN."""
    if execution.inside_xla():
        return []
    are_finite = tf.math.is_finite(losses)

    def text() -> tf.Tensor:
        return tf.strings.format(
            _START + "task {} of the batch ({} of {} tasks failed): its query loss is infinite or "
            "NaN. Look for NaN in its query set, for weights that are all 0, and for a loss that "
            "has no value there.",
            (
                tf.argmax(~are_finite),
                tf.reduce_sum(tf.cast(~are_finite, tf.int32)),
                tf.size(are_finite),
            ),
        )

    return _require(are_finite, text)


def check_update(stands: tf.Tensor, reason: tf.Tensor) -> list[tf.Operation]:
    """The same for a meta-update: raises unless it stands."""
    if execution.inside_xla():
        return []
    return _require(stands, lambda: tf.strings.join([_START + "the batch: ", reason, "."]))


def _require(fine: tf.Tensor, text: Callable[[], tf.Tensor]) -> list[tf.Operation]:
    fine = tf.reduce_all(fine)
    if not tf.executing_eagerly():
        # Made only where it is needed: its numbers would have to be copied from an accelerator.
        return [tf.debugging.Assert(fine, [tf.cond(fine, lambda: tf.constant(""), text)])]
    if not fine:
        raise AdaptationError(_plain(text().numpy().decode()))
    return []


@contextlib.contextmanager
def readable() -> Iterator[None]:
    """Turns an assertion of `check` that fails in a graph into an `AdaptationError`."""
    try:
        yield
    except tf.errors.InvalidArgumentError as error:
        found = re.search(re.escape(_START) + r"[^\]\[]*", error.message)
        if not found:
            raise
        raise AdaptationError(_plain(found.group(0))) from None


def _plain(text: str) -> str:
    # TensorFlow quotes strings, and quotes them again in an assertion.
    return text.replace('\\"', "").replace('"', "").strip()
