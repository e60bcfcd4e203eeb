"""The names, shapes and dtypes of what an export takes and gives."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping, Sequence

import keras
import tensorflow as tf

from amaml_tf.aliases import Tensors
from amaml_tf.errors import UsageError
from amaml_tf.functional.model import FunctionalModel
from amaml_tf.saved_model.class_names import Classes, ClassNames, classes_of
from amaml_tf.saved_model.targets import (
    Labels,
    any_size,
    letters_of_servers,
    losses_of,
    of_probabilities,
    packed,
    targets_of,
)
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
        labels: for each of the targets, what its labels are, or None if they are no labels.
        probabilities: the targets that are probabilities, such as 0 or 1 of two classes.
        units: how raw units become those of the model; None: requests have the model's.
        classes: for outputs whose classes have names, how predictions become classes.
        takes_weights: whether the loss of an example can be weighted; if not, an example is only
            in or out.
    """

    inputs: Specs
    targets: Specs
    outputs: Specs
    parameters: Specs
    statistics: Specs
    labels: Mapping[str, Labels | None]
    probabilities: frozenset[str]
    units: Units | None
    classes: Mapping[str, Classes]
    takes_weights: bool


def interface_of(
    function: FunctionalModel,
    *,
    input_spec: tf.TensorSpec | None,
    target_spec: tf.TensorSpec | None,
    units: Units | None,
    class_names: ClassNames,
    query_statistics: str,
) -> Interface:
    """Returns the interface of a model.

    Args:
        function: model and loss.
        input_spec: of the model's only input; None: those of the model's `Input`s.
        target_spec: of the only target; None: those of the outputs, or int32 labels where the loss
            does not take targets like the outputs.
        units: of requests; None: the model's.
        class_names: names of the classes of a classifier, or of several, by outputs.
        query_statistics: "support" or "batch", see `save_initialization`.

    Raises:
        UsageError: the model has no `Input`, two inputs or outputs would have one name, or
            `target_spec`, `units` or `class_names` do not fit it.
    """
    model = function.model
    inputs = _input_specs(model, input_spec)
    given = packed_inputs(model, {name: any_size(spec) for name, spec in inputs.items()})
    outputs, operations = _output_specs(function, given)
    targets, losses = targets_of(function, outputs, target_spec), losses_of(function, outputs)
    if units is not None:
        if len(inputs) != 1 or len(outputs) != 1:
            raise UsageError(
                "Expected a model with one input and one output to export in raw units, got "
                f"{len(inputs)} and {len(outputs)}; leave the units out."
            )
        inputs = {"": units.inputs.spec(inputs[""].shape, inputs[""].dtype.name)}
    return Interface(
        inputs={name: any_size(spec) for name, spec in inputs.items()},
        targets={name: any_size(spec) for name, spec in targets.specs.items()},
        outputs=outputs,
        parameters=named_specs("parameter", model.trainable_variables),
        statistics=named_specs(
            "statistic",
            statistics_of(function) if query_statistics == "support" else [],
        ),
        labels=targets.labels,
        probabilities=of_probabilities(losses),
        units=units,
        classes=classes_of(class_names, losses, outputs, operations),
        takes_weights=_takes_weights(function, given),
    )


def packed_inputs(model: keras.Model, inputs: Mapping[str, Tensors]) -> Tensors:
    """Returns inputs by name as the model takes them."""
    return packed(getattr(model, "input", None), list(inputs.values()))


def statistics_of(function: FunctionalModel) -> list[keras.Variable]:
    """Returns the statistics of batch normalization that depend on the examples at hand.

    Those of frozen layers never do.
    """
    if not function.batch_statistics:
        return []
    layers = function.model._flatten_layers()  # noqa: SLF001 - Keras has no public recursive list
    kind = keras.layers.BatchNormalization
    normalizing = (each for each in layers if isinstance(each, kind) and each.trainable)
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
    """Returns a name in letters of servers, without the number that Keras gave it."""
    return re.sub(r"_\d+$", "", letters_of_servers(name))


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
    ends = [f"_{letters_of_servers(name)}" for name in names]
    if len({end.lower() for end in ends}) < len(ends):  # TensorFlow does not tell case apart
        raise UsageError(
            f"Expected {kind} whose names differ in letters (of any case), digits or underscores, "
            f"got {', '.join(names)}; give them other names."
        )
    return ends


def _output_specs(function: FunctionalModel, packed: Tensors) -> tuple[Specs, dict[str, str]]:
    """Returns the specs of the outputs, and the kinds of the operations that they come from."""

    def predict(x: Tensors) -> Tensors:
        return function.predict(function.parameters(), function.state(), x, adapting=False)[0]

    program = tf.function(predict, autograph=False).get_concrete_function(packed)
    specs = keras.tree.flatten(program.structured_outputs)
    names = [""] if len(specs) == 1 else _ends(function.model.output_names, "outputs")
    operations = [_operation(each) for each in program.outputs]
    return (
        {n: tf.TensorSpec(s.shape, s.dtype) for n, s in zip(names, specs, strict=True)},
        dict(zip(names, operations, strict=True)),
    )


def _operation(tensor: tf.Tensor) -> str:
    operation = tensor.op
    while operation.type == "Identity":
        operation = operation.inputs[0].op
    return str(operation.type)


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
