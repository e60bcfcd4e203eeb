"""Checks whether a Keras model can be adapted by a gradient flow."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import keras
import tensorflow as tf

from amaml_tf.errors import UsageError


def check_model(model: keras.Model) -> None:
    """Raises UsageError unless `model` is built and its trainable variables have one dtype."""
    if not model.built:
        raise UsageError(
            f"Expected a built model, got {model.name!r} without variables. Start it with "
            "keras.Input, or call it once on a batch."
        )
    dtypes = sorted({str(variable.dtype) for variable in model.trainable_variables})
    if not dtypes:
        raise UsageError(
            f"Expected {model.name!r} to have trainable variables, found none. Is every layer "
            "frozen (`trainable = False`)?"
        )
    if len(dtypes) > 1 or dtypes[0] not in ("float32", "float64"):
        raise UsageError(
            f"Expected the trainable variables of {model.name!r} to be all float32 or all "
            f"float64, got {', '.join(dtypes)}."
        )


def refuse_own_losses(*models: keras.Model) -> None:
    """Raises UsageError if a model has a loss or metrics of its own, which would not be used."""
    for model, name in itertools.product(models, ("compute_loss", "compute_metrics")):
        if getattr(type(model), name) is not getattr(keras.Model, name):
            raise UsageError(
                f"Expected {model.name!r} to have {name} of keras.Model, got one of its own, which "
                "a MetaLearner does not call; pass a function of (y_true, y_pred) to compile, or "
                "use add_loss in the model's call."
            )


def refuse_constraints(adapted: Sequence[keras.Variable]) -> None:
    """Raises UsageError if a variable has a constraint, which the inner run would break."""
    constrained = [v.path for v in adapted if getattr(v, "constraint", None) is not None]
    if constrained:
        raise UsageError(
            f"Expected no constraints on parameters that are adapted, got some on "
            f"{', '.join(constrained)}: the inner run does not project. Leave the constraint out, "
            "use a layer or loss that needs none, or do not adapt the layer (adapted_layers)."
        )


def refuse_assignments(model: keras.Model, assigned: Sequence[keras.Variable]) -> None:
    """Raises UsageError if a call assigns to variables, because an inner run would not keep them.

    Random seeds and metrics may change, and so may the statistics of batch normalization: which of
    them are used is a choice of its own.

    Args:
        model: the model.
        assigned: the variables that its call assigns to.
    """
    layers = model._flatten_layers()  # noqa: SLF001 - Keras has no public recursive list
    normalized = [each for each in layers if isinstance(each, keras.layers.BatchNormalization)]
    may_change = {id(v) for v in model.variables} - {id(v) for v in model.weights}
    may_change |= {id(v) for layer in normalized for v in layer.weights}
    may_change |= {id(v) for layer in layers for v in layer.metrics_variables}
    paths = dict.fromkeys(v.path for v in assigned if id(v) not in may_change)
    if paths:
        raise UsageError(
            f"Expected layers that assign to no variables when they are called, got assignments to "
            f"{', '.join(paths)}, which an inner run would not keep: it would learn another model "
            "than the one that predicts. Use layers without such state (in place of "
            "SpectralNormalization, the layer that it wraps; recurrent layers with stateful=False; "
            "random numbers by a keras.random.SeedGenerator that is an attribute of the layer)."
        )


def refuse_losses_of_activities(model: keras.Model, losses: Sequence[tf.Tensor]) -> None:
    """Raises UsageError if layers add losses of what they compute, which no weight reaches.

    Args:
        model: the model.
        losses: all that its layers add, those of weights (regularizers) too.
    """
    regularized = [v for v in model.trainable_weights if v.regularizer is not None]
    if len(losses) > len(regularized):
        raise UsageError(
            f"Expected no activity regularizers and no add_loss in {model.name!r}, because the "
            "examples have weights, or come in pieces of examples_per_step: neither reaches such "
            "losses. Leave these out, or the losses."
        )
