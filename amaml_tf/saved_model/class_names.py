"""Names of the classes of a classifier, and whether its outputs are logits."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import keras

from amaml_tf.errors import UsageError


def check_class_names(names: Sequence[str], labels: Mapping[str, int | None]) -> None:
    """Raises UsageError unless there is a name for each class of a classifier with one output.

    Args:
        names: what the user gave.
        labels: for each of the targets, the number of classes, or None if they are no labels.
    """
    listed = not isinstance(names, str) and all(isinstance(name, str) for name in names)
    if not listed or len(set(names)) < len(names) or not all(n and n.isprintable() for n in names):
        raise UsageError(
            f"Expected class_names to be different names of one line each, got {names!r}; name "
            "every class."
        )
    (classes,) = labels.values() if len(labels) == 1 else (None,)
    if classes is None:
        raise UsageError(
            "Expected a classifier with one output for class_names, got a model of another kind; "
            "leave class_names out."
        )
    if len(names) != classes:
        raise UsageError(
            f"Expected {classes} class_names, one for each class, got {len(names)}; name them in "
            "the order of the labels."
        )


def from_logits(loss: object) -> bool:
    """Returns whether the outputs of a classifier are logits, as its loss says.

    Raises:
        UsageError: the loss does not say it.
    """
    if isinstance(loss, str):
        return False  # as Keras makes it
    if isinstance(loss, keras.losses.Loss) and "from_logits" in loss.get_config():
        return bool(loss.get_config()["from_logits"])
    raise UsageError(
        "Expected a cross-entropy of Keras for class_names, which says whether outputs are logits, "
        f"got {loss!r}; leave class_names out."
    )
