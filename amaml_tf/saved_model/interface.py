"""The names, shapes and dtypes of what an export takes and gives."""

from __future__ import annotations

import dataclasses
import itertools
import re
from collections.abc import Mapping, Sequence

import keras
import tensorflow as tf

from amaml_tf.aliases import Tensors
from amaml_tf.errors import UsageError
from amaml_tf.functional.model import FunctionalModel
from amaml_tf.saved_model.class_names import check_class_names, from_logits
from amaml_tf.saved_model.vocabularies import vocabulary_sizes
from amaml_tf.units import Units

#: Shapes and dtypes by the end of a name: "" for the only input, "_left" for one of several.
Specs = Mapping[str, tf.TensorSpec]


@dataclasses.dataclass(frozen=True)
class Interface:
    """What an export takes and gives, with the axis of examples first.

    Attributes:
        inputs: specs of the model's inputs, in raw units if there are any.
        targets: specs of the targets.
        outputs: specs of the predictions.
        parameters: specs of the trainable variables, by names that say their places.
        statistics: specs of the statistics of batch normalization, likewise, if predictions after
            adaptation use those of the support set.
        labels: for each of the targets, the number of classes, or None if they are no labels.
        probabilities: the targets that are probabilities, such as 0 or 1 of two classes.
        vocabularies: for each of the inputs, how many tokens it may have, from 0; None: any number.
        units: how raw units become those of the model; None: requests have the model's.
        class_names: names of the classes, for classifiers; empty: answers do not name them.
        from_logits: whether the predictions of a classifier are logits, not probabilities.
        takes_weights: whether the loss of an example can be weighted; if not, an example is only
            in or out.
    """

    inputs: Specs
    targets: Specs
    outputs: Specs
    parameters: Specs
    statistics: Specs
    labels: Mapping[str, int | None]
    probabilities: frozenset[str]
    vocabularies: Mapping[str, int | None]
    units: Units | None
    class_names: tuple[str, ...]
    from_logits: bool
    takes_weights: bool


def interface_of(
    function: FunctionalModel,
    *,
    input_spec: tf.TensorSpec | None,
    target_spec: tf.TensorSpec | None,
    units: Units | None,
    class_names: Sequence[str],
    query_statistics: str,
) -> Interface:
    """Returns the interface of a model.

    Args:
        function: model and loss.
        input_spec: of the model's only input; None: those of the model's `Input`s.
        target_spec: of the only target; None: those of the outputs, or int32 labels where the loss
            does not take targets like the outputs.
        units: of requests; None: the model's.
        class_names: names of the classes of a classifier.
        query_statistics: "support" or "batch", see `save_initialization`.

    Raises:
        UsageError: the model has no `Input`, two inputs or outputs would have one name, or
            `target_spec`, `units` or `class_names` do not fit it.
    """
    model = function.model
    inputs = _input_specs(model, input_spec)
    packed = packed_inputs(model, {name: _any_size(spec) for name, spec in inputs.items()})
    outputs = _output_specs(function, packed)
    targets, labels = _target_specs(function, outputs, target_spec)
    if units is not None:
        if len(inputs) != 1 or len(outputs) != 1:
            raise UsageError(
                "Expected a model with one input and one output to export in raw units, got "
                f"{len(inputs)} and {len(outputs)}; leave the units out."
            )
        inputs = {"": units.inputs.spec(inputs[""].shape, inputs[""].dtype.name)}
    if class_names:
        check_class_names(class_names, labels)
    return Interface(
        inputs={name: _any_size(spec) for name, spec in inputs.items()},
        targets={name: _any_size(spec) for name, spec in targets.items()},
        outputs=outputs,
        parameters=named_specs("parameter", model.trainable_variables),
        statistics=named_specs(
            "statistic",
            statistics_of(function) if query_statistics == "support" else [],
        ),
        labels=labels,
        probabilities=_probabilities(function, outputs),
        # In raw units, tokens are looked up from what requests have.
        vocabularies=dict.fromkeys(inputs)
        if units is not None
        else dict(zip(inputs, vocabulary_sizes(model) or [None], strict=True)),
        units=units,
        class_names=tuple(class_names),
        from_logits=bool(class_names) and from_logits(function.loss.given),
        takes_weights=_takes_weights(function, packed),
    )


def packed_inputs(model: keras.Model, inputs: Mapping[str, Tensors]) -> Tensors:
    """Returns inputs by name as the model takes them."""
    return _packed(getattr(model, "input", None), list(inputs.values()))


def packed_targets(model: keras.Model, targets: Mapping[str, Tensors]) -> Tensors:
    """Returns targets by name as the loss takes them."""
    return _packed(getattr(model, "output", None), list(targets.values()))


def _packed(structure: Tensors | None, values: list[Tensors]) -> Tensors:
    if len(values) == 1 and not isinstance(structure, dict):
        return values[0]
    return keras.tree.pack_sequence_as(structure, values)


def statistics_of(function: FunctionalModel) -> list[keras.Variable]:
    """Returns the statistics of batch normalization that depend on the examples at hand."""
    if not function.batch_statistics:
        return []
    layers = function.model._flatten_layers()  # noqa: SLF001 - Keras has no public recursive list
    normalizing = (each for each in layers if isinstance(each, keras.layers.BatchNormalization))
    own = {id(v) for layer in normalizing for v in (layer.moving_mean, layer.moving_variance)}
    return [v for v in function.model.non_trainable_variables if id(v) in own]


def named_specs(kind: str, variables: Sequence[keras.Variable]) -> Specs:
    """Returns the specs of variables by names such as "parameter_00_kernel".

    The number is a variable's place in the model. The names of layers would be no names: two may
    have the same, and Keras numbers them by what else a process has built.
    """
    digits = max(2, len(str(len(variables) - 1)))
    return {
        f"{kind}_{place:0{digits}}_{_plain(variable.name)}": tf.TensorSpec(
            variable.shape, variable.dtype
        )
        for place, variable in enumerate(variables)
    }


def _plain(name: str) -> str:
    """Returns a name of letters, digits and underscores, without the number that Keras gave it."""
    return re.sub(r"_\d+$", "", re.sub(r"\W", "_", name))


def _input_specs(model: keras.Model, given: tf.TensorSpec | None) -> Specs:
    if given is not None:
        return {"": given}
    inputs = getattr(model, "inputs", None) or []
    if not inputs:
        raise UsageError(
            "Expected a model with a keras.Input to export, got 0 of them; pass "
            "input_spec=tf.TensorSpec([None, ...])."
        )
    names = _ends(
        model.input_names if hasattr(model, "input_names") else [i.name for i in inputs], "inputs"
    )
    return {
        name: tf.TensorSpec(each.shape, each.dtype)
        for name, each in zip(names, inputs, strict=True)
    }


def _ends(names: Sequence[str], kind: str) -> list[str]:
    """Returns the ends of the names of `kind`, inputs or outputs, of letters that servers take."""
    if len(names) == 1:
        return [""]
    ends = [f"_{re.sub(r'[^A-Za-z0-9_]', '_', name)}" for name in names]
    if len(set(ends)) < len(ends):
        raise UsageError(
            f"Expected {kind} whose names differ in letters from A to Z, digits or underscores, "
            f"got {', '.join(names)}; give them other names."
        )
    return ends


def _output_specs(function: FunctionalModel, packed: Tensors) -> Specs:
    def predict(x: Tensors) -> Tensors:
        return function.predict(function.parameters(), function.state(), x, adapting=False)[0]

    outputs = tf.function(predict, autograph=False).get_concrete_function(packed)
    specs = keras.tree.flatten(outputs.structured_outputs)
    if len(specs) == 1:
        return {"": tf.TensorSpec(specs[0].shape, specs[0].dtype)}
    names = _ends(function.model.output_names, "outputs")
    return {n: tf.TensorSpec(spec.shape, spec.dtype) for n, spec in zip(names, specs, strict=True)}


def _target_specs(
    function: FunctionalModel, outputs: Specs, given: tf.TensorSpec | None
) -> tuple[Specs, dict[str, int | None]]:
    if given is not None:
        return _given_targets(function, outputs, given)
    flags = itertools.product((False, True), repeat=len(outputs))
    for are_labels in sorted(flags, key=sum):  # targets like the outputs first
        targets = {
            name: tf.TensorSpec(spec.shape[:-1], tf.int32) if is_label else spec
            for (name, spec), is_label in zip(outputs.items(), are_labels, strict=True)
        }
        if _takes(function, targets, outputs):
            chosen = zip(outputs.items(), are_labels, strict=True)
            return targets, {
                name: spec.shape[-1] if each else None for (name, spec), each in chosen
            }
    raise UsageError(
        "Expected a loss of targets that are like the outputs, or int32 labels, got one that takes "
        "neither; pass target_spec=tf.TensorSpec([None, ...], dtype)."
    )


def _given_targets(
    function: FunctionalModel, outputs: Specs, given: tf.TensorSpec
) -> tuple[Specs, dict[str, int | None]]:
    if (
        len(outputs) != 1
        or given.dtype == tf.string
        or not _takes(function, {"": _any_size(given)}, outputs)
    ):
        raise UsageError(
            "Expected target_spec of targets that the loss takes, for a model with one output, got "
            f"{given.dtype.name} {given.shape} for {len(outputs)}; leave it out."
        )
    shape, classes = list(given.shape), outputs[""].shape[-1]
    if shape[-1:] == [1] and classes != 1 and len(shape) == len(outputs[""].shape):
        shape.pop()  # Keras takes labels of shape [n, 1] as well
    labels = given.dtype.is_integer and len(shape) < len(outputs[""].shape)
    return {"": given}, {"": classes if labels else None}


#: Losses that Keras computes for any targets, though only those from 0 to 1 have a meaning.
_OF_PROBABILITIES = (
    keras.losses.binary_crossentropy,
    keras.losses.binary_focal_crossentropy,
    keras.losses.categorical_crossentropy,
    keras.losses.categorical_focal_crossentropy,
)


def _probabilities(function: FunctionalModel, outputs: Specs) -> frozenset[str]:
    given = function.loss.given
    losses = keras.tree.flatten(given)
    names = getattr(function.model, "output_names", ())
    if isinstance(given, Mapping) and set(names) == set(given):
        losses = [given[name] for name in names]
    if len(losses) == 1:
        losses *= len(outputs)
    return frozenset(
        end for end, loss in zip(outputs, losses, strict=False) if _of_probabilities(loss)
    )


def _of_probabilities(loss: object) -> bool:
    if isinstance(loss, str):
        try:
            loss = keras.losses.get(loss)
        except ValueError:
            return False  # one of the names by which Keras looks at the shapes
    return getattr(loss, "fn", loss) in _OF_PROBABILITIES


def _takes(function: FunctionalModel, targets: Specs, outputs: Specs) -> bool:
    model = function.model
    given = packed_targets(model, targets), packed_targets(model, outputs)
    try:
        tf.function(function.loss, autograph=False).get_concrete_function(*given)
    except (TypeError, ValueError):
        return False
    return True


def _takes_weights(function: FunctionalModel, packed: Tensors) -> bool:
    """Returns whether no layer adds a loss of what it computes, which no weight would reach."""

    def predict(x: Tensors, chosen: tf.Tensor) -> Tensors:
        parameters, state = function.parameters(), function.state()
        return function.predict(parameters, state, x, adapting=False, chosen=chosen)

    try:
        tf.function(predict, autograph=False).get_concrete_function(
            packed, tf.TensorSpec([None], tf.bool)
        )
    except UsageError:
        return False
    return True


def _any_size(spec: tf.TensorSpec) -> tf.TensorSpec:
    """Returns `spec` for any number of examples, and without its name.

    The name would become the name of the argument.
    """
    return tf.TensorSpec([None, *spec.shape[1:]], spec.dtype)
