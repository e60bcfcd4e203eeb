"""Makes an ordinary Keras model with the adapted parameters of one task."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Sequence

import keras
import numpy as np
import tensorflow as tf

# Keras does not export the class of models that are graphs of layers.
from keras.src.models import Functional

from amaml_tf.aliases import Tensors
from amaml_tf.episodes import Examples
from amaml_tf.errors import UsageError
from amaml_tf.functional.example_weights import counting_inputs
from amaml_tf.functional.model import FunctionalModel, State


def adapted_model(
    function: FunctionalModel, parameters: Sequence[tf.Tensor], state: State, support: Examples
) -> keras.Model:
    """Returns a copy of the function's model with these values, not compiled.

    Args:
        function: the model to copy.
        parameters: values of its trainable variables.
        state: values of its non-trainable variables.
        support: examples; batch normalization stores their statistics.

    Raises:
        UsageError: if the model cannot be copied from its configuration.
    """
    model = function.model
    values = dict(zip(map(id, model.trainable_variables), parameters, strict=True))
    others = function.statistics_of(parameters, state, support)
    values |= dict(zip(map(id, model.non_trainable_variables), others, strict=True))
    x, options = counting_inputs(support)[0], function.call_options(False)
    copy = _copy_of(model)
    if not copy.built:
        _build_as(model, copy)
        copy(x, **options)
    try:
        _copy_states(model, copy)
        for target, source in zip(copy.variables, model.variables, strict=True):
            target.assign(values[id(source)])
    except ValueError as error:
        raise UsageError(_not_copied(model, "its copy has other variables")) from error

    def expected() -> Tensors:
        return model.stateless_call(list(parameters), others, x, **options)[0]

    # Where two predictions of the model itself differ, it is random.
    if not _agree(copy(x, **options), expected()) and _agree(expected(), expected()):
        raise UsageError(_not_copied(model, "its copy predicts something else"))
    return copy


def _agree(one: Tensors, other: Tensors) -> bool:
    pairs = zip(keras.tree.flatten(one), keras.tree.flatten(other), strict=True)
    for found, expected in (tuple(tf.cast(v, tf.float64).numpy() for v in pair) for pair in pairs):
        # Kernels of a GPU may round otherwise from call to call.
        largest = np.max(np.abs(expected), initial=0.0, where=np.isfinite(expected))
        if not np.allclose(found, expected, rtol=0, atol=1e-3 * largest, equal_nan=True):
            return False
    return True


def _build_as(source: keras.Model, target: keras.Model) -> None:
    """Builds the layers that `target` has by now as those of `source` were."""
    layers = (model._flatten_layers(include_self=False) for model in (source, target))  # noqa: SLF001
    for one, other in zip(*layers, strict=False):
        config = one.get_build_config()
        has_build = type(one).build is not keras.layers.Layer.build
        if config and has_build and one.built and not other.built:
            other.build_from_config(config)


def _copy_states(source: keras.Model, target: keras.Model) -> None:
    """Copies what layers hold beside their configuration, as Keras's saving does.

    An adapted `Normalization` layer, for example, computes constants from its variables, and
    `StringLookup` has a vocabulary.
    """
    layers = (model._flatten_layers(include_self=False) for model in (source, target))  # noqa: SLF001
    for one, other in zip(*layers, strict=True):
        store: dict[str, np.ndarray] = {}
        one.save_own_variables(store)
        other.load_own_variables(store)
        if hasattr(one, "save_assets"):
            with tempfile.TemporaryDirectory() as folder:
                one.save_assets(folder)
                other.load_assets(folder)


def _copy_of(model: keras.Model) -> keras.Model:
    layers = model._flatten_layers()  # noqa: SLF001 - Keras has no public recursive list
    of_layers = isinstance(model, (keras.Sequential, Functional))
    try:
        if of_layers and any(map(_is_function, layers)):
            return keras.models.clone_model(model, clone_function=_layer_like, recursive=True)
        return keras.models.clone_model(model)
    except (ValueError, TypeError, NotImplementedError) as error:
        # The class of a user may take no arguments, and then Keras makes no configuration of it.
        with contextlib.suppress(TypeError):
            if not type(model).__module__.startswith("keras."):
                return type(model)()
        first = f"{error}".split(". ")[0].split("\n")[0]
        raise UsageError(_not_copied(model, first)) from error


def _is_function(layer: keras.layers.Layer) -> bool:
    return type(layer) is keras.layers.Lambda


def _layer_like(layer: keras.layers.Layer) -> keras.layers.Layer:
    """Returns a copy of a layer, with the very function of a `Lambda` layer.

    Keras makes it again from its code, only if that is allowed for files, and without its globals.
    """
    if not _is_function(layer):
        return type(layer).from_config(layer.get_config())
    config = keras.layers.Layer.get_config(layer)
    options = {"output_shape": layer._output_shape, "mask": layer.mask}  # noqa: SLF001
    return keras.layers.Lambda(layer.function, arguments=layer.arguments, **options, **config)


def _not_copied(model: keras.Model, reason: str) -> str:
    return (
        f"Expected a model that can be copied from its configuration, but {model.name!r} cannot "
        f"({reason}); build it from keras.Input of layers whose get_config has all that they were "
        "given, or give it get_config and an __init__ that takes what it returns."
    )
