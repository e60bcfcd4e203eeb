"""Predictions in ONNX: of the initialization, and with the parameters that `adapt` gave."""

from __future__ import annotations

import importlib
import re

import tensorflow as tf

from amaml_tf.errors import UsageError
from amaml_tf.saved_model.adapting import Adapter
from amaml_tf.saved_model.signatures import Arguments, Signature
from amaml_tf.units import Lookup


def onnx_models(adapter: Adapter) -> dict[str, bytes]:
    """Returns the ONNX files `serving_default.onnx` and `predict_with.onnx` of an export.

    Inputs and outputs have the names, shapes, dtypes and units of the signatures. They are not
    checked, and there are no `probabilities` and `classes`.

    Args:
        adapter: of the export.

    Raises:
        UsageError: tf2onnx is not installed, or the network has something that ONNX lacks.
    """
    units = adapter.interface.units
    if units is not None and isinstance(units.inputs, Lookup):
        raise UsageError(
            "Expected inputs that are numbers for ONNX, which has no tables of identifiers, got "
            "identifiers of items; export the features as inputs with --noraw_units."
        )
    inputs = {f"x{end}": spec for end, spec in adapter.interface.inputs.items()}
    parameters, statistics = adapter.interface.parameters, adapter.interface.statistics

    def x(given: Arguments) -> dict[str, tf.Tensor]:
        return {end: given[f"x{end}"] for end in adapter.interface.inputs}

    def predict(given: Arguments) -> dict[str, tf.Tensor]:
        return adapter.named_predictions(adapter.predict_unadapted(x(given)))

    def predict_with(given: Arguments) -> dict[str, tf.Tensor]:
        values = [given[name] for name in parameters], [given[name] for name in statistics]
        return adapter.named_predictions(adapter.predict(*values, x(given)))

    signatures = [
        Signature("serving_default", inputs, predict),
        Signature("predict_with", {**parameters, **statistics, **inputs}, predict_with),
    ]
    return {f"{each.name}.onnx": _converted(each) for each in signatures}


def _converted(signature: Signature) -> bytes:
    try:
        tf2onnx, onnx = importlib.import_module("tf2onnx"), importlib.import_module("onnx")
    except ImportError as error:
        raise UsageError(
            f"Expected the package tf2onnx for ONNX, got none ({error}); install it with pip "
            "install amaml-tf[onnx], or export without --onnx."
        ) from error
    specs = [tf.TensorSpec(s.shape, s.dtype, name) for name, s in signature.specs.items()]
    try:
        model, _ = tf2onnx.convert.from_function(signature.in_graph(), input_signature=specs)
        onnx.checker.check_model(model)  # a node that could not be converted is left as it is
    except (ValueError, RuntimeError, NotImplementedError, onnx.checker.ValidationError) as error:
        raise UsageError(
            f"Expected a network of operations that ONNX has, got one that {signature.name} cannot "
            f"be converted of ({_first_sentence(error)}); use another layer there, or export "
            "without --onnx."
        ) from error
    return bytes(model.SerializeToString())


def _first_sentence(error: Exception) -> str:
    return re.split(r"\n|\. ", str(error).strip())[0][:200]
