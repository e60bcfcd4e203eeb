"""A version of an export as a model server holds it: loaded, warmed up, unloaded when unused."""

from __future__ import annotations

import gc
import threading

import tensorflow as tf
from tensorflow.core.protobuf import config_pb2, meta_graph_pb2
from tensorflow_serving.apis import get_model_metadata_pb2, prediction_log_pb2

WARMUP = "assets.extra/tf_serving_warmup_requests"


def warmup_logs(path):
    """Returns the official messages in the warm-up file of the version in `path`."""
    records = tf.data.TFRecordDataset(str(path / WARMUP)).as_numpy_iterator()
    return [prediction_log_pb2.PredictionLog.FromString(record) for record in records]


class LoadedVersion:
    """A version in a session; its warm-up requests have been replayed, as TF Serving does.

    Without that, whoever comes first to a version waits until its graph has been optimized.
    """

    def __init__(self, path):
        self.number = int(path.name)
        graph = tf.Graph()
        self._session = tf.compat.v1.Session(graph=graph)
        with graph.as_default():
            loaded = tf.compat.v1.saved_model.load(self._session, ["serve"], str(path))
        self.signatures = {
            name: each
            for name, each in loaded.signature_def.items()
            if not name.startswith("__saved_model")
        }
        self._programs = {name: self._program(each) for name, each in self.signatures.items()}
        self._users = 0
        self._changed = threading.Condition()
        for log in warmup_logs(path):
            self.answer(log.predict_log.request)

    def answer(self, request):
        """Returns the outputs of a PredictRequest by name; raises tf.errors.OpError."""
        inputs = {name: tf.make_ndarray(value) for name, value in request.inputs.items()}
        return self.predict(request.model_spec.signature_name or "serving_default", inputs)

    def predict(self, signature, inputs):
        """Returns the outputs of a signature by name; raises tf.errors.OpError."""
        if signature not in self.signatures:
            raise _refusal(f"Serving signature name: {signature!r} not found in signature def")
        wanted = self.signatures[signature]
        if set(inputs) != set(wanted.inputs):
            raise _refusal(f"inputs {sorted(inputs)} are not {sorted(wanted.inputs)}")
        for name, info in wanted.inputs.items():
            if _dtype(inputs[name]) != tf.as_dtype(info.dtype):
                raise _refusal(f"dtype of {name}: expected {tf.as_dtype(info.dtype).name}")
        return self._programs[signature](inputs)

    def _program(self, signature):
        """Returns a function of the inputs by name, without Python's own checks of shapes."""
        inputs, outputs = dict(signature.inputs), dict(signature.outputs)
        options = config_pb2.CallableOptions(
            feed=[info.name for info in inputs.values()],
            fetch=[info.name for info in outputs.values()],
        )
        run = self._session._make_callable_from_options(options)

        def program(given):
            return dict(zip(outputs, run(*(given[name] for name in inputs)), strict=True))

        return program

    def signature_map(self):
        """Returns the signatures as the official message."""
        found = get_model_metadata_pb2.SignatureDefMap()
        for name, signature in self.signatures.items():
            copied = meta_graph_pb2.SignatureDef.FromString(signature.SerializeToString())
            found.signature_def[name].CopyFrom(copied)
        return found

    def start_use(self):
        """Keeps the version loaded until `end_use`."""
        with self._changed:
            self._users += 1

    def end_use(self):
        """Ends what `start_use` has begun."""
        with self._changed:
            self._users -= 1
            self._changed.notify_all()

    def unload(self):
        """Waits for the requests that use the version, and frees its memory.

        Python's graph is a cycle of objects, of which only a full collection frees the 15 MiB of a
        small version. A server in C++ has no such objects.
        """
        with self._changed:
            self._changed.wait_for(lambda: self._users == 0)
        self._programs.clear()
        self._session.close()
        self._session = None
        gc.collect()


def _dtype(array):
    return tf.string if array.dtype.kind in "OSU" else tf.as_dtype(array.dtype)


def _refusal(message):
    return tf.errors.InvalidArgumentError(None, None, message)
