"""A model server for the tests: the official services over sessions on the newest versions.

    python tests/serving/official_server.py EXPORT [--port=8500] [--rest_port=8501]

It implements `PredictionService` (Predict, GetModelMetadata) and `ModelService` (GetModelStatus) of
tensorflow-serving-api by gRPC, and predictions, metadata and status by REST. It loads versions as
TF Serving does by the policy in export/models.config: of the versions that are there, it wants the
two newest. It loads and warms up those that it lacks before it unloads others, and passes over
versions to which newer ones have come meanwhile. The command is for trying the clients of export/
where Docker is not there.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import contextlib
import http.server
import pathlib
import threading
import time

import grpc
import tensorflow as tf
from loaded_version import LoadedVersion
from rest_handler import rest_handler
from tensorflow_serving.apis import (
    get_model_metadata_pb2,
    get_model_status_pb2,
    model_service_pb2_grpc,
    predict_pb2,
    prediction_service_pb2_grpc,
)

NAME = "initialization"
CODES = {code.value[0]: code for code in grpc.StatusCode}
KEPT = 2  # versions stay loaded, as models.config says


class Server:
    """Serves the newest versions in a folder; use it as a context.

    Attributes:
        seen: numbers of all versions that were loaded, in their order.
    """

    def __init__(self, folder: pathlib.Path, port: int = 0, rest_port: int = 0):
        self._folder, self._ports = pathlib.Path(folder), (port, rest_port)
        self._stopped, self._lock = threading.Event(), threading.Lock()
        self._loaded: dict[int, LoadedVersion] = {}
        self.seen: list[int] = []

    def __enter__(self):
        self._load_new_ones()
        options = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]
        self._grpc = grpc.server(concurrent.futures.ThreadPoolExecutor(8), options=options)
        prediction_service_pb2_grpc.add_PredictionServiceServicer_to_server(
            _Predictions(self), self._grpc
        )
        model_service_pb2_grpc.add_ModelServiceServicer_to_server(_Models(self), self._grpc)
        port = self._grpc.add_insecure_port(f"localhost:{self._ports[0]}")
        self.address = f"localhost:{port}"
        self._grpc.start()
        address = ("localhost", self._ports[1])
        self._http = http.server.ThreadingHTTPServer(address, rest_handler(self))
        self.rest_address = f"localhost:{self._http.server_address[1]}"
        threading.Thread(target=self._http.serve_forever, daemon=True).start()
        self._poller = threading.Thread(target=self._poll, daemon=True)
        self._poller.start()
        return self

    def __exit__(self, *_):
        self._stopped.set()
        self._poller.join()
        self._grpc.stop(None).wait()
        self._http.shutdown()
        self._http.server_close()

    def _poll(self):
        while not self._stopped.wait(0.1):
            self._load_new_ones()

    def _load_new_ones(self):
        found = sorted(int(p.name) for p in self._folder.iterdir() if p.name.isdecimal())
        wanted = found[-KEPT:]
        for number in (n for n in wanted if n not in self._loaded):
            start = time.monotonic()
            loaded = LoadedVersion(self._folder / str(number))  # must load: versions appear whole
            with self._lock:
                self._loaded[number] = loaded
            self.seen.append(number)
            print(f"Version {number} loaded in {time.monotonic() - start:.1f} s.", flush=True)
        with self._lock:
            old = [self._loaded.pop(n) for n in sorted(self._loaded) if n not in wanted]
        while old:
            old.pop().unload()

    def loaded(self):
        """Returns the numbers of the versions that can be asked for."""
        with self._lock:
            return sorted(self._loaded)

    @property
    def newest(self):
        """The newest version that is loaded."""
        with self._lock:
            return self._loaded[max(self._loaded)]

    @contextlib.contextmanager
    def version(self, name=NAME, number=None):
        """Yields the version that a request asks for; raises tf.errors.NotFoundError."""
        with self._lock:
            found = self._loaded.get(max(self._loaded) if number is None else number)
            if name != NAME or found is None:
                asked = name if number is None else f"{name}, version {number}"
                raise tf.errors.NotFoundError(None, None, f"Servable not found: {asked}")
            found.start_use()
        try:
            yield found
        finally:
            found.end_use()

    def asked_for(self, spec):
        """Yields the version that a ModelSpec asks for."""
        return self.version(spec.name, spec.version.value if spec.HasField("version") else None)


class _Predictions(prediction_service_pb2_grpc.PredictionServiceServicer):
    def __init__(self, server):
        self._server = server

    def Predict(self, request, context):  # noqa: N802 - the official name
        answer = predict_pb2.PredictResponse()
        try:
            with self._server.asked_for(request.model_spec) as version:
                outputs = version.answer(request)
        except tf.errors.OpError as error:
            context.abort(CODES[error.error_code], error.message)
        answer.model_spec.name = NAME
        answer.model_spec.version.value = version.number
        for name in request.output_filter or outputs:
            answer.outputs[name].CopyFrom(tf.make_tensor_proto(outputs[name]))
        return answer

    def GetModelMetadata(self, request, context):  # noqa: N802 - the official name
        answer = get_model_metadata_pb2.GetModelMetadataResponse()
        try:
            with self._server.asked_for(request.model_spec) as version:
                answer.metadata["signature_def"].Pack(version.signature_map())
        except tf.errors.OpError as error:
            context.abort(CODES[error.error_code], error.message)
        return answer


class _Models(model_service_pb2_grpc.ModelServiceServicer):
    def __init__(self, server):
        self._server = server

    def GetModelStatus(self, request, context):  # noqa: N802 - the official name
        answer = get_model_status_pb2.GetModelStatusResponse()
        available = get_model_status_pb2.ModelVersionStatus.AVAILABLE
        for number in self._server.loaded():
            answer.model_version_status.add(version=number, state=available)
        return answer


def main():
    """Serves until it is interrupted."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("export", help="folder of the versions")
    parser.add_argument("--port", type=int, default=8500, help="gRPC")
    parser.add_argument("--rest_port", type=int, default=8501)
    options = parser.parse_args()
    with Server(options.export, options.port, options.rest_port) as server:
        print(f"gRPC at {server.address}, REST at {server.rest_address}.", flush=True)
        with contextlib.suppress(KeyboardInterrupt):
            threading.Event().wait()


if __name__ == "__main__":
    main()
