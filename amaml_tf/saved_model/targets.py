"""Which targets a loss takes: their shapes and dtypes, and whether they are labels."""

from __future__ import annotations

import itertools
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

import keras
import numpy as np
import tensorflow as tf

from amaml_tf.aliases import Tensors
from amaml_tf.errors import UsageError
from amaml_tf.functional.model import FunctionalModel

#: Shapes and dtypes by the end of a name: see `Interface`.
Specs = Mapping[str, tf.TensorSpec]

#: Losses that Keras computes for any targets, though only those from 0 to 1 have a meaning.
_OF_PROBABILITIES = (
    keras.losses.binary_crossentropy,
    keras.losses.binary_focal_crossentropy,
    keras.losses.categorical_crossentropy,
    keras.losses.categorical_focal_crossentropy,
    keras.losses.kl_divergence,
)
#: Losses of targets of another shape than outputs, which check it themselves.
_OF_OTHER_SHAPES = (
    keras.losses.sparse_categorical_crossentropy,
    keras.losses.circle,
    keras.losses.ctc,
)


class Labels(NamedTuple):
    """Targets that are whole numbers.

    Attributes:
        classes: labels are from 0 to `classes - 1`; None: any.
        ignored: another label, which the loss leaves out.
    """

    classes: int | None
    ignored: int | None = None


class Targets(NamedTuple):
    """The targets of a model, by the ends of their names.

    Attributes:
        specs: shapes and dtypes.
        labels: which are labels; None for those that are not.
    """

    specs: Specs
    labels: Mapping[str, Labels | None]


def targets_of(function: FunctionalModel, outputs: Specs, given: tf.TensorSpec | None) -> Targets:
    """Returns the targets that the loss takes.

    Args:
        function: model and loss.
        outputs: specs of its outputs.
        given: of the only target; None: those of the outputs, or int32 labels where the loss does
            not take targets like the outputs.

    Raises:
        UsageError: the loss takes neither, or not what is given, or it compares a target with the
            outputs of other examples.
    """
    if given is not None:
        return _given_targets(function, outputs, given)
    losses = losses_of(function, outputs)
    kinds = ((True,) if _is_sparse(losses.get(end)) else (False, True) for end in outputs)
    flags = itertools.product(*kinds)
    for are_labels in sorted(flags, key=sum):  # targets like the outputs first
        targets = {
            name: tf.TensorSpec(spec.shape[:-1], tf.int32) if is_label else spec
            for (name, spec), is_label in zip(outputs.items(), are_labels, strict=True)
        }
        if _takes(function, targets, outputs):
            return Targets(
                targets,
                {
                    name: Labels(spec.shape[-1], _ignored(losses.get(name))) if each else None
                    for (name, spec), each in zip(outputs.items(), are_labels, strict=True)
                },
            )
    raise UsageError(
        "Expected a loss of targets that are like the outputs, or int32 labels, got one that takes "
        "neither; pass target_spec=tf.TensorSpec([None, ...], dtype)."
    )


def losses_of(function: FunctionalModel, outputs: Specs) -> dict[str, Any]:
    """Returns the loss of each output as Keras has it: an object, a function, or None.

    Names for which Keras chooses a loss by shapes stay names.
    """
    given = function.loss.given
    losses = keras.tree.flatten(given)
    if isinstance(given, Mapping):
        losses = [given.get(name) for name in getattr(function.model, "output_names", ())]
    if len(losses) == 1:
        losses *= len(outputs)
    return {end: _resolved(loss) for end, loss in zip(outputs, losses, strict=False)}


def function_of(loss: object) -> object:
    """Returns the function of Keras behind a loss."""
    return getattr(loss, "fn", loss)


def of_probabilities(losses: Mapping[str, object]) -> frozenset[str]:
    """Returns the ends of the names of targets that are probabilities."""
    return frozenset(end for end, loss in losses.items() if function_of(loss) in _OF_PROBABILITIES)


def packed_targets(model: keras.Model, targets: Mapping[str, Tensors]) -> Tensors:
    """Returns targets by name as the loss takes them."""
    return packed(getattr(model, "output", None), list(targets.values()))


def packed(structure: Tensors | None, values: list[Tensors]) -> Tensors:
    """Returns values in the structure of a model's inputs or outputs."""
    if len(values) == 1 and not isinstance(structure, dict):
        return values[0]
    return keras.tree.pack_sequence_as(structure, values)


def any_size(spec: tf.TensorSpec) -> tf.TensorSpec:
    """Returns `spec` for any number of examples, and without its name.

    The name would become the name of the argument.
    """
    return tf.TensorSpec([None, *spec.shape[1:]], spec.dtype)


def letters_of_servers(name: str) -> str:
    """Returns the name of an input or output in letters that every server takes."""
    return re.sub(r"[^A-Za-z0-9_]", "_", name)


def _resolved(loss: object) -> object:
    if isinstance(loss, str):
        try:
            return keras.losses.get(loss)
        except ValueError:
            return loss  # one of the names by which Keras looks at the shapes
    return loss


def _is_sparse(loss: object) -> bool:
    return function_of(loss) is keras.losses.sparse_categorical_crossentropy


def _ignored(loss: object) -> int | None:
    config = loss.get_config() if isinstance(loss, keras.losses.Loss) else {}
    return config.get("ignore_class")


def _given_targets(function: FunctionalModel, outputs: Specs, given: tf.TensorSpec) -> Targets:
    if (
        len(outputs) != 1
        or not (given.dtype.is_floating or given.dtype.is_integer)
        or not _takes(function, {"": any_size(given)}, outputs)
    ):
        raise UsageError(
            "Expected target_spec of targets that the loss takes, for a model with one output, got "
            f"{given.dtype.name} {given.shape} for {len(outputs)}; leave it out."
        )
    (output,), (loss,) = outputs.values(), losses_of(function, outputs).values()
    target = any_size(given)
    _require_own_outputs(function, loss, target, output)
    labels = None
    if _are_labels(function, loss, target, output):
        rank = len(target.shape) - (target.shape[-1] == 1 and output.shape[-1] != 1)
        per_row = rank < len(output.shape) and output.shape[-1] != 1
        labels = Labels(output.shape[-1] if per_row else None, _ignored(loss))
    return Targets({"": target}, {"": labels})


def _require_own_outputs(
    function: FunctionalModel, loss: object, target: tf.TensorSpec, output: tf.TensorSpec
) -> None:
    """Raises UsageError if targets are compared with what was predicted for other examples.

    That is what broadcasting makes of targets `[n]` and outputs `[n, k]`.
    """
    of_keras = getattr(keras.losses, getattr(function_of(loss), "__name__", ""), None)
    if of_keras is function_of(loss):
        separate = of_keras in _OF_OTHER_SHAPES or _fits(target, output)
    else:
        separate = target.shape.as_list() == output.shape.as_list() or _is_separate(
            function, target, output
        )
    if not separate:
        raise UsageError(
            f"Expected target_spec of targets that have the shape of the outputs, {output.shape}, "
            f"got {target.shape}, which the loss would broadcast; leave target_spec out, and send "
            "targets of that shape."
        )


def _fits(target: tf.TensorSpec, output: tf.TensorSpec) -> bool:
    """Returns whether shapes are equal, or would be with an axis of size 1 at the end."""
    shapes = [list(target.shape[1:]), list(output.shape[1:])]
    short, long = sorted(shapes, key=len)
    return long in (short, [*short, 1])


def _is_separate(function: FunctionalModel, target: tf.TensorSpec, output: tf.TensorSpec) -> bool:
    """Returns whether a loss compares each of some random targets with its own output.

    If so, the order of the examples does not matter, and that of the targets alone does, unless
    the loss has no use for targets.
    """
    depends = ignores = False
    for rows in (2, 3, 8):
        y, p = _labels_like(target, rows, output), _random(output, rows)
        order = np.roll(np.arange(rows), 1)
        pairs = (y, p), (y[order], p[order]), (y[order], p)
        value, same, other = (_loss(function, *pair) for pair in pairs)
        if value is None or same is None or other is None:
            return False
        if not np.isfinite([value, same, other]).all():
            return True  # nothing can be said
        error = 1e-4 * (1 + abs(value))
        if abs(value - same) > error:
            return False
        depends |= abs(value - other) > error
        ignores = _loss(function, y + 1, p) == value
    return depends or ignores


def _are_labels(
    function: FunctionalModel, loss: object, target: tf.TensorSpec, output: tf.TensorSpec
) -> bool:
    """Returns whether a loss takes targets for whole numbers: it does not see what is behind."""
    if _is_sparse(loss):
        return True
    p = _random(output, 2)
    y = np.zeros_like(_labels_like(target, 2, output), "float32")
    zero, quarter, one = (_loss(function, y + shift, p) for shift in (0, 0.25, 1))
    return zero is not None and zero == quarter != one  # NaN is not equal to itself


def _labels_like(target: tf.TensorSpec, rows: int, output: tf.TensorSpec) -> np.ndarray:
    """Returns targets 0 and 1 in turn; what is not known of their shape is as in the outputs."""
    likely = [size or 2 for size in output.shape[1:]]
    sizes = itertools.zip_longest(target.shape[1:], likely[: len(target.shape) - 1], fillvalue=2)
    shape = [rows, *(own or other for own, other in sizes)]
    return (np.indices(shape).sum(axis=0) % 2).astype(target.dtype.as_numpy_dtype)


def _random(output: tf.TensorSpec, rows: int) -> np.ndarray:
    """Returns outputs from 0 to 1."""
    shape = [rows, *(size or 2 for size in output.shape[1:])]
    values = np.random.default_rng(rows).uniform(0.1, 0.9, size=shape)
    return values.astype(output.dtype.as_numpy_dtype)


def _loss(function: FunctionalModel, y: np.ndarray, p: np.ndarray) -> float | None:
    """Returns the loss of targets and outputs; None if it does not take them."""
    target, output = (packed_targets(function.model, {"": tf.constant(v)}) for v in (y, p))
    try:
        return float(function.loss(target, output))
    except (TypeError, ValueError, tf.errors.OpError, UsageError):
        return None


def _takes(function: FunctionalModel, targets: Specs, outputs: Specs) -> bool:
    model = function.model
    given = packed_targets(model, targets), packed_targets(model, outputs)
    try:
        tf.function(function.loss, autograph=False).get_concrete_function(*given)
    except (TypeError, ValueError):
        return False
    return True
