"""Checks of the values of a request: which numbers, labels, tokens and weights are refused."""

from __future__ import annotations

from collections.abc import Mapping

import tensorflow as tf

from amaml_tf.saved_model import validation
from amaml_tf.saved_model.interface import Interface
from amaml_tf.saved_model.targets import Labels
from amaml_tf.saved_model.validation import Check
from amaml_tf.saved_model.vocabularies import Vocabularies

Named = Mapping[str, tf.Tensor]


def of_inputs(vocabularies: Vocabularies, name: str, x: Named) -> list[Check]:
    """Returns checks of the values of inputs."""
    floating = {end: values for end, values in x.items() if values.dtype.is_floating}
    finite = [validation.is_finite(name + end, values) for end, values in floating.items()]
    return [*finite, *vocabularies.checks(name, x)]


def of_targets(interface: Interface, y: Named) -> list[Check]:
    """Returns checks of the values of support targets."""
    checks = []
    for end, values in y.items():
        name, labels = f"support_y{end}", interface.labels[end]
        if values.dtype.is_floating:
            checks.append(validation.is_finite(name, values))
        if labels is not None:
            checks += _of_labels(name, values, labels)
        elif end in interface.probabilities:
            checks.append(validation.is_between(name, values, 0, 1, "probabilities"))
    return checks


def _of_labels(name: str, values: tf.Tensor, labels: Labels) -> list[Check]:
    checks = []
    if values.dtype.is_floating:
        checks.append(validation.is_whole(name, values, "labels"))
    if labels.classes is not None:
        seen = values
        if labels.ignored is not None:  # by the loss
            ignored = tf.equal(values, tf.cast(labels.ignored, values.dtype))
            seen = tf.where(ignored, tf.zeros_like(values), values)
        checks.append(validation.is_between(name, seen, 0, labels.classes - 1, "labels"))
    return checks


def of_weights(weight: tf.Tensor, any_number: bool) -> list[Check]:
    """Returns checks of the weights of examples, which are 0 or 1 unless `any_number`."""
    fine = tf.math.is_finite(weight) & (weight >= 0)
    words = "finite numbers of 0 or more"
    if not any_number:
        fine, words = tf.equal(weight, 0) | tf.equal(weight, 1), "0 or 1"
    return [
        Check(
            tf.reduce_all(fine),
            lambda: tf.constant(
                f"Expected support_weight of {words}, got others; leave an example out with "
                "weight 0."
            ),
        ),
        Check(
            tf.reduce_any(weight > 0),
            lambda: tf.constant(
                "Expected support_weight above 0 for at least 1 row of a task, got none; send a "
                "labelled example to adapt to."
            ),
        ),
    ]
