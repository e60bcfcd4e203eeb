"""Checks of a request, made in the graph: they hold in a model server, where there is no Python."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import tensorflow as tf

_NO_AXIS = -2


class Check(NamedTuple):
    """A condition, and what to say if it does not hold.

    Attributes:
        holds: bool scalar.
        message: makes the sentence, a string scalar; called in the graph of the failed case.
    """

    holds: tf.Tensor
    message: Callable[[], tf.Tensor]


def first_failure(checks: Sequence[Check]) -> tf.Tensor:
    """Returns the message of the first check that does not hold, "" if all hold."""
    if not checks:
        return tf.constant("")
    holds = tf.stack([check.holds for check in checks])

    def told() -> tf.Tensor:
        first = tf.argmin(tf.cast(holds, tf.int32))  # the first False
        return tf.stack([check.message() for check in checks])[first]

    return tf.cond(tf.reduce_all(holds), lambda: tf.constant(""), told)


def require_none(message: tf.Tensor) -> tf.Operation:
    """Returns an assertion to depend on: the request fails with `message` unless it is empty."""
    return tf.debugging.Assert(tf.equal(message, ""), [message])


def as_it_came(name: str, tensor: tf.Tensor) -> tf.Tensor:
    """Returns the input `name` without its static shape.

    A session feeds tensors of any shape, and TensorFlow removes checks that the declared shapes
    seem to make needless. (It does so even here if a declared shape is fully known, as those of
    parameters are. `tf.ensure_shape` then still fails, with a message that has this name.)
    """
    return tf.compat.v1.placeholder_with_default(tensor, shape=None, name=name)


def has_shape(name: str, tensor: tf.Tensor, spec: tf.TensorSpec, axes: Sequence[str]) -> Check:
    """Checks rank and sizes.

    Args:
        name: of the input.
        tensor: as it came, of unknown shape.
        spec: its shape should be; None fits any size.
        axes: the words for the first axes, such as "rows".
    """
    wanted = [-1 if size is None else size for size in spec.shape]
    words = [*axes[: len(wanted)], *map(str, wanted[len(axes) :])]
    expected = f"[{', '.join(words)}]".replace("-1", "any")

    def message() -> tf.Tensor:
        return tf.strings.format(
            f"Expected {name} of shape {expected}, got shape {{}}; send one row for each example.",
            tf.shape(tensor),
        )

    # What came has a mark behind it, and one axis more is looked at, for a rank that is too large.
    # (TensorFlow takes a comparison of the rank itself for needless.)
    marked = tf.concat([tf.shape(tensor), [_NO_AXIS] * (len(wanted) + 1)], axis=0)
    sizes, expected_sizes = marked[: len(wanted) + 1], [*wanted, _NO_AXIS]
    any_size = tf.equal(expected_sizes, -1) & (sizes >= 0)
    return Check(tf.reduce_all(any_size | tf.equal(sizes, expected_sizes)), message)


def same_size(
    name: str, tensor: tf.Tensor, other: str, like: tf.Tensor, axis: int, what: str
) -> Check:
    """Checks that two inputs have as many entries (`what`: rows or tasks) on an axis."""

    def message() -> tf.Tensor:
        return tf.strings.format(
            f"Expected {name} with as many {what} as {other}, {{}}, got {{}}; send one for each.",
            (size(like, axis), size(tensor, axis)),
        )

    return Check(tf.equal(size(tensor, axis), size(like, axis)), message)


def at_least_one(name: str, tensor: tf.Tensor, axis: int, what: str = "row") -> Check:
    """Checks that there is an example to adapt to, or (`what`) a task."""

    def message() -> tf.Tensor:
        return tf.constant(
            f"Expected {name} with at least 1 {what}, got 0; send a labelled example to adapt to."
        )

    return Check(size(tensor, axis) >= 1, message)


def at_most(name: str, tensor: tf.Tensor, axis: int, most: int, what: str) -> Check:
    """Checks the bound on the rows or tasks of a request."""

    def message() -> tf.Tensor:
        return tf.strings.format(
            f"Expected {name} with at most {most} {what}, the bound of this export, got {{}}; send "
            "fewer, or export with a larger bound.",
            size(tensor, axis),
        )

    return Check(size(tensor, axis) <= most, message)


def row_checks(tensors: Mapping[str, tf.Tensor], axis: int, most: int) -> list[Check]:
    """Returns checks that inputs have the same number of rows, and not too many."""
    came = {name: as_it_came(name, tensor) for name, tensor in tensors.items()}
    first, *rest = came
    return [
        *(same_size(name, came[name], first, came[first], axis, "rows") for name in rest),
        at_most(first, came[first], axis, most, "rows"),
    ]


def is_finite(name: str, tensor: tf.Tensor, advice: str = "leave such examples out") -> Check:
    """Checks that there is no NaN and no infinity."""
    finite = tf.math.is_finite(tensor)

    def message() -> tf.Tensor:
        return tf.strings.format(
            f"Expected {name} of finite numbers, got {{}} that are NaN or infinite; {advice}.",
            tf.reduce_sum(tf.cast(~finite, tf.int32)),
        )

    return Check(tf.reduce_all(finite), message)


def is_between(name: str, tensor: tf.Tensor, least: float, most: float, what: str) -> Check:
    """Checks the range of labels or of pixels; no values are in any range."""

    def message() -> tf.Tensor:
        return tf.strings.format(
            f"Expected {name} to be {what} from {least:g} to {most:g}, got {{}} to {{}}; send "
            f"{what} in that range.",
            (tf.reduce_min(tensor), tf.reduce_max(tensor)),
        )

    within = (tensor >= tf.cast(least, tensor.dtype)) & (tensor <= tf.cast(most, tensor.dtype))
    return Check(tf.reduce_all(within), message)


def is_whole(name: str, tensor: tf.Tensor, what: str) -> Check:
    """Checks that numbers in floating point are whole: a cast would make other ones of them."""

    def message() -> tf.Tensor:
        broken = tf.boolean_mask(tensor, tf.not_equal(tensor, tf.floor(tensor)))
        return tf.strings.format(
            f"Expected {name} to be {what}, which are whole numbers, got {{}}; send whole numbers.",
            tf.concat([broken, tf.zeros([1], tensor.dtype)], axis=0)[0],
        )

    return Check(tf.reduce_all(tf.equal(tensor, tf.floor(tensor))), message)


def checked_time(given: tf.Tensor, longest: float) -> tuple[tf.Tensor, Check]:
    """Returns the time as a scalar, and the check that it came as one, in its range."""
    came = as_it_came("final_time", given)
    flat = tf.reshape(came, [-1])
    fits = tf.equal(tf.size(tf.shape(came)), 0) & tf.reduce_all((flat > 0) & (flat <= longest))
    check = Check(
        fits,
        lambda: tf.strings.format(
            f"Expected final_time, one number above 0 and at most {longest:g}, got {{}}; send a "
            "time in that range.",
            came,
        ),
    )
    return tf.concat([flat, tf.zeros([1], flat.dtype)], axis=0)[0], check


def size(tensor: tf.Tensor, axis: int) -> tf.Tensor:
    """Returns how many entries an axis has; 0 if there is no such axis."""
    return tf.concat([tf.shape(tensor), [0] * (axis + 1)], axis=0)[axis]
