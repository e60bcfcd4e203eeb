"""Names of the classes of classifiers, and how predictions become probabilities and classes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, TypeAlias

import keras
import tensorflow as tf

from amaml_tf.errors import UsageError
from amaml_tf.saved_model.targets import Specs, function_of, letters_of_servers

#: Names of the classes, of the only classifier or by the names of outputs.
ClassNames: TypeAlias = Sequence[str] | Mapping[str, Sequence[str]]

#: One output, the probability of the second of two classes, or its logit.
_OF_TWO = (keras.losses.binary_crossentropy, keras.losses.binary_focal_crossentropy)
#: An output for each class.
_OF_SEVERAL = (
    keras.losses.sparse_categorical_crossentropy,
    keras.losses.categorical_crossentropy,
    keras.losses.categorical_focal_crossentropy,
)
#: The losses for which Keras chooses by the shapes.
_CHOSEN = ("ce", "crossentropy")


class Classes(NamedTuple):
    """The classes of one output.

    Attributes:
        names: in the order of the labels.
        from_logits: whether outputs are logits, not probabilities.
    """

    names: tuple[str, ...]
    from_logits: bool

    def of(self, outputs: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """Returns the probabilities of the classes, `[..., classes]`, and the most probable."""
        if outputs.shape[-1] == 1:
            second = tf.sigmoid(outputs) if self.from_logits else outputs
            first = tf.sigmoid(-outputs) if self.from_logits else 1 - outputs
            probabilities = tf.concat([first, second], axis=-1)
        elif self.from_logits:
            probabilities = tf.nn.softmax(outputs)
        else:
            # As the losses take them, for outputs that do not add up to 1.
            probabilities = outputs / tf.reduce_sum(outputs, axis=-1, keepdims=True)
        return probabilities, tf.gather(list(self.names), tf.argmax(probabilities, axis=-1))


def classes_of(
    names: ClassNames,
    losses: Mapping[str, object],
    outputs: Specs,
    operations: Mapping[str, str],
) -> dict[str, Classes]:
    """Returns the classes of each output whose classes have names.

    Args:
        names: what the user gave; empty: no names.
        losses: of the outputs, see `losses_of`.
        outputs: their specs.
        operations: the kinds of the operations that they come from.

    Raises:
        UsageError: the names do not fit the model, or it is no classifier, or its loss does not say
            what its outputs mean.
    """
    if not names:
        return {}
    found = {}
    for end, each in _by_output(names, losses, outputs).items():
        logits = _from_logits(losses.get(end), outputs[end], operations[end])
        classes = 2 if outputs[end].shape[-1] == 1 else outputs[end].shape[-1]
        _check_names(each, classes)
        found[end] = Classes(tuple(each), logits)
    return found


def _by_output(
    names: ClassNames, losses: Mapping[str, object], outputs: Specs
) -> Mapping[str, Sequence[str]]:
    if isinstance(names, Mapping) and len(outputs) == len(names) == 1:
        return dict(zip(outputs, names.values(), strict=True))
    if isinstance(names, Mapping):
        by_end = {f"_{letters_of_servers(str(name))}": each for name, each in names.items()}
        if unknown := by_end.keys() - outputs.keys():
            raise UsageError(
                "Expected class_names by the names of outputs, "
                f"{', '.join(end.removeprefix('_') for end in outputs)}, got "
                f"{', '.join(end.removeprefix('_') for end in sorted(unknown))}; name an output, "
                "or give the names alone."
            )
        return by_end
    classifiers = [end for end in outputs if _function(losses.get(end)) in _OF_TWO + _OF_SEVERAL]
    if len(outputs) == 1:
        return dict.fromkeys(outputs, names)
    if len(classifiers) != 1:
        raise UsageError(
            f"Expected one classifier among the outputs for class_names, got {len(classifiers)} of "
            f"{len(outputs)}; give the names by outputs, class_names={{output: [name, ...]}}."
        )
    return {classifiers[0]: names}


def _check_names(names: Sequence[str], classes: int) -> None:
    listed = not isinstance(names, str) and all(isinstance(name, str) for name in names)
    if not listed or len(set(names)) < len(names) or not all(n and n.isprintable() for n in names):
        raise UsageError(
            f"Expected class_names to be different names of one line each, got {names!r}; name "
            "every class."
        )
    if len(names) != classes:
        raise UsageError(
            f"Expected {classes} class_names, one for each class, got {len(names)}; name them in "
            "the order of the labels."
        )


def _function(loss: object) -> object:
    """Returns the function of a loss, of those that Keras chooses the one for several classes."""
    return _OF_SEVERAL[0] if loss in _CHOSEN else function_of(loss)


def _from_logits(loss: Any, output: tf.TensorSpec, operation: str) -> bool:
    """Returns whether the outputs of a classifier are logits, as its loss says."""
    function, size = _function(loss), output.shape[-1] if len(output.shape) > 1 else None
    if function not in _OF_TWO + _OF_SEVERAL:
        raise UsageError(
            "Expected a cross-entropy of Keras for class_names, which says what outputs mean, got "
            f"{loss!r}; leave class_names out."
        )
    two = size == 1 and (function in _OF_TWO or loss in _CHOSEN)
    several = size is not None and size > 1 and function in _OF_SEVERAL
    if not two and not several:
        raise UsageError(
            "Expected a classifier of one output for each class, or of one output for two classes, "
            f"for class_names, got outputs of shape {output.shape} with the loss "
            f"{getattr(function, '__name__', function)}, whose classes do not exclude each other; "
            "leave class_names out."
        )
    config = loss.get_config() if isinstance(loss, keras.losses.Loss) else {}
    if config.get("axis", -1) not in (-1, len(output.shape) - 1):
        raise UsageError(
            f"Expected classes on the last axis of outputs for class_names, got axis "
            f"{config['axis']} in the loss; leave class_names out."
        )
    # As Keras does: it looks behind a softmax or sigmoid, whatever the loss says of logits.
    return bool(config.get("from_logits", False)) and operation not in ("Softmax", "Sigmoid")
