"""Requests to try an export with: for the check of what was written, and for a server's warm-up.

TensorFlow Serving replays `assets.extra/tf_serving_warmup_requests`, a TFRecord file of
`tensorflow.serving.PredictionLog`, before it gives a version its first request.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TypeAlias

import keras
import numpy as np
import tensorflow as tf

from amaml_tf.errors import ExportError, UsageError
from amaml_tf.saved_model.adapting import Adapter
from amaml_tf.saved_model.signatures import ConcreteFunction, Signature
from amaml_tf.saved_model.versions import EXTRA
from amaml_tf.units import Affine, Lookup, Units

#: Support rows of an example request, unless there are more classes.
ROWS = 32

_WITHOUT_ADAPTATION = ("serving_default", "predict_with")

WARMUP = EXTRA / "tf_serving_warmup_requests"

#: Inputs of a request by name, as arrays.
Request: TypeAlias = Mapping[str, np.ndarray]


def example_requests(
    adapter: Adapter,
    signatures: Sequence[Signature],
    functions: Mapping[str, ConcreteFunction],
) -> Mapping[str, Request]:
    """Returns a request for each signature: random inputs, labels of every class.

    Other targets are what the initialization predicts, with as many rows as a small task has:
    adaptation to a few random numbers need not be stable. There is no request for a signature that
    refuses it all the same: a server would not load a version whose warm-up fails.
    """
    interface = adapter.interface
    labels = {end: each and each.classes for end, each in interface.labels.items()}
    classes = max([1, *filter(None, labels.values())])
    bounds = adapter.bounds
    rows = min(max(ROWS, classes), bounds.max_support_rows, bounds.max_query_rows)
    given: dict[str, np.ndarray] = {
        name: value.numpy()
        for name, value in zip(interface.parameters, adapter.function.parameters(), strict=True)
    }
    state = adapter.function.state()
    for name, place in zip(interface.statistics, adapter.places_of_statistics, strict=True):
        given[name] = state[place].numpy()
    given["support_weight"] = np.ones(rows, np.float32)
    given["final_time"] = adapter.final_time().numpy()
    random = np.random.default_rng(0)
    x, predictions = _tried(adapter, functions["serving_default"], rows, random)
    for end, values in x.items():
        given |= {f"x{end}": values, f"support_x{end}": values, f"query_x{end}": values}
    for end, spec in interface.targets.items():
        predicted = predictions.get(f"predictions{end}")
        targets = _targets(spec, rows, labels[end], predicted, random)
        if interface.labels[end] is not None:
            targets = targets.round()
        if end in interface.probabilities:
            targets = np.clip(targets, 0, 1)
        given[f"support_y{end}"] = targets
    requests: dict[str, Request] = {}
    for signature in signatures:
        request = {name: given[name] for name in signature.specs}
        if signature.takes_tasks:
            request = {name: value[np.newaxis] for name, value in request.items()}
        requests[signature.name] = request
    try:
        functions["adapt"](*map(tf.constant, requests["adapt"].values()))
    except tf.errors.InvalidArgumentError:
        return {name: each for name, each in requests.items() if name in _WITHOUT_ADAPTATION}
    return requests


def write_warmup(folder: Path, requests: Mapping[str, Request]) -> None:
    """Writes the requests into the version in `folder`."""
    with tf.io.TFRecordWriter(str(folder / WARMUP)) as writer:
        for name, request in requests.items():
            writer.write(_prediction_log(name, request))


def refuse_unless_alike(
    folder: Path, functions: Mapping[str, ConcreteFunction], requests: Mapping[str, Request]
) -> None:
    """Loads the version in `folder` and compares its answers with those of this process.

    The answers of adaptation follow from those of `adapt` and `predict_with`, because a request
    asks for predictions at its support inputs.

    Raises:
        ExportError: they differ, or it cannot be loaded.
    """
    try:
        loaded = tf.saved_model.load(str(folder)).signatures
    except (OSError, tf.errors.OpError) as error:
        raise ExportError(
            f"Expected to load the export again, got {str(error)!r}; nothing was written. Look at "
            "the disk, and export again."
        ) from error
    expected = {
        name: functions[name](*map(tf.constant, requests[name].values()))
        for name in ("serving_default", "adapt")
        if name in requests
    }
    given = expected.get("adapt", {})
    adapted = {name: given.get(name, value) for name, value in requests["predict_with"].items()}
    expected["predict_with"] = functions["predict_with"](*map(tf.constant, adapted.values()))
    if given:
        expected["adapt_and_predict"] = {**given, **expected["predict_with"]}
        expected["adapt_and_predict_batch"] = {
            name: value[tf.newaxis] for name, value in expected["adapt_and_predict"].items()
        }
    for name, answer in expected.items():
        request = adapted if name == "predict_with" else requests[name]
        came = loaded[name](**{key: tf.constant(value) for key, value in request.items()})
        for key in came.keys() & answer.keys():
            if not _alike(answer[key].numpy(), came[key].numpy()):
                raise ExportError(
                    f"Expected {key} of the signature {name} to be the same after loading the "
                    "export, got other values; nothing was written. Export again, and report this "
                    "if it comes back."
                )


def _alike(expected: np.ndarray, answer: np.ndarray) -> bool:
    if not np.issubdtype(expected.dtype, np.floating):
        return bool(np.array_equal(expected, answer))
    return bool(np.allclose(answer, expected, rtol=1e-3, atol=1e-4, equal_nan=True))


def _tried(
    adapter: Adapter, predict: ConcreteFunction, rows: int, random: np.random.Generator
) -> tuple[dict[str, np.ndarray], Mapping[str, tf.Tensor]]:
    """Returns inputs that the model knows, and what it predicts.

    Raises:
        UsageError: it knows none of those that were tried.
    """
    interface, refusal = adapter.interface, ""
    for fill in (None, *_tokens(adapter)):
        inputs = {
            end: _inputs(interface.units, spec, rows, random)
            if fill is None or isinstance(fill, str) != (spec.dtype == tf.string)
            else np.full(_shape(spec, rows), fill, spec.dtype.as_numpy_dtype)
            for end, spec in interface.inputs.items()
        }
        try:
            return inputs, predict(*map(tf.constant, inputs.values()))
        except tf.errors.InvalidArgumentError as error:
            refusal = error.message.splitlines()[0]
    raise UsageError(
        "Expected a model that knows the token 0, 1 or one of a vocabulary, to try the export "
        f"with, got one that knows none of them ({refusal!r}); let its tokens begin at 0."
    )


def _tokens(adapter: Adapter) -> list[int | str]:
    """Returns tokens that a model may know, by its layers."""
    lookups = (keras.layers.StringLookup, keras.layers.IntegerLookup)
    layers = adapter.function.model._flatten_layers()  # noqa: SLF001 - Keras has no public list
    sizes = [each.size for each in adapter.vocabularies.all]
    known = [layer.get_vocabulary()[-1] for layer in layers if isinstance(layer, lookups)]
    return [0, 1, *(size - 1 for size in sizes[:1]), *known]


def _shape(spec: tf.TensorSpec, rows: int) -> list[int]:
    return [rows, *(1 if size is None else size for size in spec.shape[1:])]


def _inputs(
    units: Units | None, spec: tf.TensorSpec, rows: int, random: np.random.Generator
) -> np.ndarray:
    shape = _shape(spec, rows)
    if units is not None and isinstance(units.inputs, Lookup):
        known = units.inputs.identifiers
        return np.array([known[row % len(known)] for row in range(rows)], spec.dtype.as_numpy_dtype)
    if spec.dtype == tf.uint8:
        return random.integers(0, 256, shape).astype(np.uint8)
    if spec.dtype == tf.string:
        return np.full(shape, b"a", object)
    if not spec.dtype.is_floating:
        return np.zeros(shape, spec.dtype.as_numpy_dtype)
    values = random.normal(size=shape)
    if units is not None and isinstance(units.inputs, Affine):
        values = units.inputs.raw(values)
    return values.astype(spec.dtype.as_numpy_dtype)


def _targets(
    spec: tf.TensorSpec,
    rows: int,
    classes: int | None,
    predicted: tf.Tensor | None,
    random: np.random.Generator,
) -> np.ndarray:
    shape = _shape(spec, rows)
    dtype = spec.dtype.as_numpy_dtype
    if classes is not None:
        labels = np.arange(rows, dtype=dtype) % classes
        return np.broadcast_to(labels.reshape([rows] + [1] * (len(shape) - 1)), shape)
    if predicted is not None and predicted.shape.as_list() == shape:
        return predicted.numpy().astype(dtype)
    return random.uniform(size=shape).astype(dtype)


def _prediction_log(signature: str, request: Request) -> bytes:
    """Returns a serialized `tensorflow.serving.PredictionLog`.

    Field numbers are those of tensorflow_serving/apis: PredictionLog.predict_log = 6,
    PredictLog.request = 1, PredictRequest.model_spec = 1 and inputs = 2 (a map: key = 1,
    value = 2), ModelSpec.signature_name = 3. All fields are strings or messages.
    """
    inputs = b"".join(
        _field(
            2,
            _field(1, name.encode()) + _field(2, tf.make_tensor_proto(value).SerializeToString()),
        )
        for name, value in request.items()
    )
    return _field(6, _field(1, _field(1, _field(3, signature.encode())) + inputs))


def _field(number: int, value: bytes) -> bytes:
    """Returns a field of protocol buffers with a length: its key, its length, its value."""
    return _varint(number << 3 | 2) + _varint(len(value)) + value


def _varint(value: int) -> bytes:
    digits = []
    while value > 127:
        digits.append(value & 127 | 128)
        value >>= 7
    return bytes([*digits, value])
