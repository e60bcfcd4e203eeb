"""The REST interface of TF Serving, for the model server of the tests."""

import http.server
import json
import re

import numpy as np
import tensorflow as tf
from google.protobuf import json_format

PATH = re.compile(r"/v1/models/(?P<name>[^/:]+)(/versions/(?P<number>\d+))?(?P<rest>.*)")


def rest_handler(server):
    """Returns the class of a handler of /v1/models/NAME[/versions/N][/metadata|:predict]."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            self._answer({"/metadata": _metadata, "": lambda _: _status(server.loaded())})

        def do_POST(self):
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            self._answer({":predict": lambda version: _predictions(version, body)})

        def _answer(self, ways):
            path = PATH.fullmatch(self.path)
            if path is None or path["rest"] not in ways:
                self._send(404, {"error": f"Malformed request: {self.command} {self.path}"})
                return
            number = None if path["number"] is None else int(path["number"])
            try:
                with server.version(path["name"], number) as version:
                    self._send(200, ways[path["rest"]](version))
            except tf.errors.NotFoundError as error:
                self._send(404, {"error": error.message})
            except (tf.errors.OpError, ValueError, KeyError) as error:
                self._send(400, {"error": str(error)})

        def _send(self, status, value):
            content = json.dumps(value, default=bytes.decode).encode()  # strings are bytes
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_):
            pass

    return Handler


def _status(numbers):
    states = [{"version": str(number), "state": "AVAILABLE"} for number in numbers]
    return {"model_version_status": states}


def _metadata(version):
    signatures = json_format.MessageToDict(
        version.signature_map(), preserving_proto_field_name=True
    )
    return {"metadata": {"signature_def": signatures}}


def _predictions(version, body):
    name = body.get("signature_name", "serving_default")
    infos = version.signatures[name].inputs
    inputs = {
        key: np.array(value, tf.as_dtype(infos[key].dtype).as_numpy_dtype)
        for key, value in body["inputs"].items()
    }
    outputs = {k: np.asarray(v).tolist() for k, v in version.predict(name, inputs).items()}
    return {"outputs": outputs if len(outputs) > 1 else next(iter(outputs.values()))}
