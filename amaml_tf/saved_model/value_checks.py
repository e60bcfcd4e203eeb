"""Checks of the values of a request: which numbers, labels, tokens and weights are refused."""

from __future__ import annotations

from collections.abc import Mapping

import tensorflow as tf

from amaml_tf.saved_model import validation
from amaml_tf.saved_model.interface import Interface
from amaml_tf.saved_model.validation import Check

Named = Mapping[str, tf.Tensor]


def of_inputs(interface: Interface, name: str, x: Named) -> list[Check]:
    """Returns checks of the values of inputs."""
    floating = {end: values for end, values in x.items() if values.dtype.is_floating}
    finite = [validation.is_finite(name + end, values) for end, values in floating.items()]
    return [*finite, *of_tokens(interface, name, x)]


def of_tokens(interface: Interface, name: str, x: Named) -> list[Check]:
    """Returns checks that the embeddings of the model know the tokens of inputs."""
    return [
        validation.is_between(name + end, values, 0, size - 1, "tokens")
        for end, values in x.items()
        if (size := interface.vocabularies[end]) is not None
    ]


def known_tokens(interface: Interface, x: Named) -> dict[str, tf.Tensor]:
    """Returns inputs with tokens that an embedding can read, whatever they were."""
    sizes = interface.vocabularies
    return {
        end: values if (size := sizes[end]) is None else tf.clip_by_value(values, 0, size - 1)
        for end, values in x.items()
    }


def of_targets(interface: Interface, y: Named) -> list[Check]:
    """Returns checks of the values of support targets."""
    checks = []
    for end, values in y.items():
        name, classes = f"support_y{end}", interface.labels[end]
        if classes is not None:
            checks.append(validation.is_between(name, values, 0, classes - 1, "labels"))
        elif end in interface.probabilities:
            checks.append(validation.is_between(name, values, 0, 1, "probabilities"))
        elif values.dtype.is_floating:
            checks.append(validation.is_finite(name, values))
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
