"""What to say, and when, if the adaptation of a task does not arrive."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from typing import Any

import tensorflow as tf

from amaml_tf.solvers.diagnostics import (
    COMPLETED,
    NON_FINITE,
    STEP_LIMIT,
    STEP_TOO_SMALL,
    Diagnostics,
)

_REASONS = {
    NON_FINITE: "values became infinite or NaN. Look for NaN in its support set and for a loss "
    "that is unbounded below; otherwise a smaller step size, rtol or final_time helps",
    STEP_LIMIT: "the solver used all the steps it may take. A looser rtol, a smaller final_time, "
    "a larger max_num_steps or, for long runs, RungeKuttaChebyshev helps",
    STEP_TOO_SMALL: "no step was small enough for the tolerance. Look for a loss that is not "
    "smooth or unbounded below; otherwise a looser rtol or float64 helps",
}
_START = "Adaptation failed for "


class AdaptationError(RuntimeError):
    """The flow of a task did not reach its final time."""


def message(diagnostics: Diagnostics, final_time: Any) -> tf.Tensor:
    """Returns a scalar string tensor: which task failed first in the batch, when and why."""
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


def check(diagnostics: Diagnostics, final_time: Any) -> list[tf.Operation]:
    """Raises `AdaptationError` if a task failed; in a graph, returns an assertion to depend on.

    Under XLA assertions have no effect: check outside of what is compiled.
    """
    fine = tf.reduce_all(diagnostics.status == COMPLETED)
    if not tf.executing_eagerly():
        return [tf.debugging.Assert(fine, [message(diagnostics, final_time)])]
    if not fine:
        raise AdaptationError(_plain(message(diagnostics, final_time).numpy().decode()))
    return []


@contextlib.contextmanager
def readable() -> Iterator[None]:
    """Turns the assertion of `check`, failing in a graph, into an `AdaptationError`."""
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
