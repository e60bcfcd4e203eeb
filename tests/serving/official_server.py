"""A model server for the tests: the official services over sessions on the newest version.

It implements `PredictionService` (Predict, GetModelMetadata) and `ModelService` (GetModelStatus) of
tensorflow-serving-api by gRPC, and predictions and metadata by REST, as TF Serving does: a version
is loaded by `tf.compat.v1.saved_model.load` into a session, when its folder appears.
"""

from __future__ import annotations

import concurrent.futures
import http.server
import json
import pathlib
import threading
import time
from typing import Any

import grpc
import numpy as np
import tensorflow as tf
from google.protobuf import json_format
from tensorflow.core.protobuf import meta_graph_pb2
from tensorflow_serving.apis import (
    get_model_metadata_pb2,
    get_model_status_pb2,
    model_service_pb2_grpc,
    predict_pb2,
    prediction_service_pb2_grpc,
)

NAME = "initialization"
CODES = {code.value[0]: code for code in grpc.StatusCode}


class Version:
    """A loaded version of an export."""

    def __init__(self, path):
        self.number = int(path.name)
        graph = tf.Graph()
        self.session = tf.compat.v1.Session(graph=graph)
        with graph.as_default():
            loaded = tf.compat.v1.saved_model.load(self.session, ["serve"], str(path))
        self.signatures = loaded.signature_def

    def predict(self, signature, inputs):
        """Returns the outputs by name; raises tf.errors.OpError."""
        if signature not in self.signatures:
            raise tf.errors.InvalidArgumentError(None, None, f"no signature {signature}")
        wanted = self.signatures[signature]
        if set(inputs) != set(wanted.inputs):
            raise tf.errors.InvalidArgumentError(
                None, None, f"inputs {sorted(inputs)} are not {sorted(wanted.inputs)}"
            )
        for name, info in wanted.inputs.items():
            if tf.as_dtype(inputs[name].dtype) != tf.as_dtype(info.dtype):
                raise tf.errors.InvalidArgumentError(None, None, f"dtype of {name}")
        feeds = {wanted.inputs[name].name: value for name, value in inputs.items()}
        fetches = {name: info.name for name, info in wanted.outputs.items()}
        try:
            return self.session.run(fetches, feeds)
        except ValueError as error:  # Python's own check of shapes; the server's session has none
            raise tf.errors.InvalidArgumentError(None, None, str(error)) from error


class Server:
    """Serves the newest version in a folder; use it as a context."""

    def __init__(self, folder: pathlib.Path):
        self._folder = pathlib.Path(folder)
        self._stopped = threading.Event()
        self.versions: list[int] = []  # numbers, in the order in which they were loaded
        self.newest: Any = None

    def __enter__(self):
        self._load_new_ones()
        pool = concurrent.futures.ThreadPoolExecutor(8)
        options = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]
        self._grpc = grpc.server(pool, options=options)
        prediction_service_pb2_grpc.add_PredictionServiceServicer_to_server(
            _Predictions(self), self._grpc
        )
        model_service_pb2_grpc.add_ModelServiceServicer_to_server(_Models(self), self._grpc)
        self.address = f"localhost:{self._grpc.add_insecure_port('localhost:0')}"
        self._grpc.start()
        self._http = http.server.ThreadingHTTPServer(("localhost", 0), _rest_handler(self))
        self.rest_address = f"localhost:{self._http.server_address[1]}"
        threading.Thread(target=self._http.serve_forever, daemon=True).start()
        self._poller = threading.Thread(target=self._poll, daemon=True)
        self._poller.start()
        return self

    def __exit__(self, *_):
        self._stopped.set()
        self._poller.join()
        self._grpc.stop(None)
        self._http.shutdown()
        self._http.server_close()

    def _poll(self):
        while not self._stopped.wait(0.1):
            self._load_new_ones()

    def _load_new_ones(self):
        found = (int(p.name) for p in self._folder.iterdir() if p.name.isdecimal())
        for number in sorted(set(found) - set(self.versions)):
            self.newest = Version(self._folder / str(number))  # must load: versions appear whole
            self.versions.append(number)

    def chosen(self, spec):
        """Returns the version that a request asks for; raises tf.errors.NotFoundError."""
        if spec.name != NAME:
            raise tf.errors.NotFoundError(None, None, f"Servable not found: {spec.name}")
        if spec.HasField("version") and spec.version.value != self.newest.number:
            raise tf.errors.NotFoundError(None, None, f"no version {spec.version.value}")
        return self.newest


class _Predictions(prediction_service_pb2_grpc.PredictionServiceServicer):
    def __init__(self, server):
        self._server = server

    def Predict(self, request, context):  # noqa: N802 - the official name
        try:
            version = self._server.chosen(request.model_spec)
            inputs = {name: tf.make_ndarray(value) for name, value in request.inputs.items()}
            signature = request.model_spec.signature_name or "serving_default"
            outputs = version.predict(signature, inputs)
        except tf.errors.OpError as error:
            context.abort(CODES[error.error_code], error.message)
        answer = predict_pb2.PredictResponse()
        answer.model_spec.name = NAME
        answer.model_spec.version.value = version.number
        for name in request.output_filter or outputs:
            answer.outputs[name].CopyFrom(tf.make_tensor_proto(outputs[name]))
        return answer

    def GetModelMetadata(self, request, context):  # noqa: N802 - the official name
        answer = get_model_metadata_pb2.GetModelMetadataResponse()
        answer.metadata["signature_def"].Pack(_signature_map(self._server.newest))
        return answer


class _Models(model_service_pb2_grpc.ModelServiceServicer):
    def __init__(self, server):
        self._server = server

    def GetModelStatus(self, request, context):  # noqa: N802 - the official name
        answer = get_model_status_pb2.GetModelStatusResponse()
        available = get_model_status_pb2.ModelVersionStatus.AVAILABLE
        answer.model_version_status.add(version=self._server.newest.number, state=available)
        return answer


def _signature_map(version):
    found = get_model_metadata_pb2.SignatureDefMap()
    for name, signature in version.signatures.items():
        copied = meta_graph_pb2.SignatureDef.FromString(signature.SerializeToString())
        found.signature_def[name].CopyFrom(copied)
    return found


def _rest_handler(server):
    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            signatures = json_format.MessageToDict(
                _signature_map(server.newest), preserving_proto_field_name=True
            )
            self._answer(200, {"metadata": {"signature_def": signatures}})

        def do_POST(self):
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            version, name = server.newest, body.get("signature_name", "serving_default")
            infos = version.signatures[name].inputs
            try:
                inputs = {
                    key: np.array(value, tf.as_dtype(infos[key].dtype).as_numpy_dtype)
                    for key, value in body["inputs"].items()
                }
                outputs = version.predict(name, inputs)
            except (tf.errors.OpError, ValueError, KeyError) as error:
                self._answer(400, {"error": str(error)})
                return
            self._answer(200, {"outputs": {k: np.asarray(v).tolist() for k, v in outputs.items()}})

        def _answer(self, status, value):
            content = json.dumps(value).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_):
            pass

    return Handler


def wait_for(condition, seconds=60.0):
    """Returns whether a condition came true in time."""
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            return False
        time.sleep(0.05)
    return True
