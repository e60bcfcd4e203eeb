"""Sends labelled examples and queries to a model server by gRPC, and prints the predictions.

    python client_grpc.py --support=support.csv --query=query.csv
    python client_grpc.py --support=support_images --query=query_images --model=characters
    python client_grpc.py --support=support.csv --query=query.csv --adapt_once

It needs tensorflow-serving-api (and Pillow for images). With --adapt_once, the server adapts in a
first request and predicts in a second one, which gets the adapted parameters: this is how to
predict often for one task.
"""

import argparse
import sys

import examples
import grpc
import tensorflow as tf
from tensorflow_serving.apis import (
    get_model_metadata_pb2,
    predict_pb2,
    prediction_service_pb2_grpc,
)


class Client:
    """Calls the signatures of an export on a model server.

    Args:
        server: host and port.
        model: name of the model there.
        version: a number, or None for the newest.
        timeout: seconds to wait for an answer.
    """

    def __init__(self, server, model, version=None, timeout=30):
        # Adapted parameters can be larger than 4 MB, the default of gRPC.
        options = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]
        channel = grpc.insecure_channel(server, options=options)
        self._stub = prediction_service_pb2_grpc.PredictionServiceStub(channel)
        self._model, self._version, self._timeout = model, version, timeout

    def inputs_of(self, signature):
        """Returns dtype (a name) and shape of every input of a signature; -1 is any size."""
        request = get_model_metadata_pb2.GetModelMetadataRequest(metadata_field=["signature_def"])
        self._name(request.model_spec)
        answer = self._stub.GetModelMetadata(request, self._timeout)
        signatures = get_model_metadata_pb2.SignatureDefMap()
        answer.metadata["signature_def"].Unpack(signatures)
        return {
            name: (dtype_name(info.dtype), [size.size for size in info.tensor_shape.dim])
            for name, info in signatures.signature_def[signature].inputs.items()
        }

    def call(self, signature, **inputs):
        """Returns the outputs of a signature by name, as arrays."""
        request = predict_pb2.PredictRequest()
        self._name(request.model_spec)
        request.model_spec.signature_name = signature
        for name, value in inputs.items():
            request.inputs[name].CopyFrom(tf.make_tensor_proto(value))
        answer = self._stub.Predict(request, self._timeout)
        return {name: tf.make_ndarray(value) for name, value in answer.outputs.items()}

    def _name(self, spec):
        spec.name = self._model
        if self._version is not None:
            spec.version.value = self._version


def dtype_name(number):
    """Returns the name of a dtype, as numpy knows it."""
    return "str" if number == tf.string else tf.as_dtype(number).name


def main():
    """Runs the client."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--server", default="localhost:8500")
    parser.add_argument("--model", default="initialization")
    parser.add_argument("--version", type=int, help="default: the newest")
    parser.add_argument("--support", required=True, help="labelled examples: CSV, .npz or folder")
    parser.add_argument("--query", required=True, help="what to predict: CSV, .npz or folder")
    parser.add_argument("--adapt_once", action="store_true")
    parser.add_argument("--timeout", type=float, default=30, help="seconds")
    options = parser.parse_args()
    client = Client(options.server, options.model, options.version, options.timeout)
    try:
        given = examples.read(options.support, options.query, client.inputs_of("adapt_and_predict"))
        if options.adapt_once:
            support = {name: value for name, value in given.items() if name.startswith("support")}
            answer = client.call("adapt", **support)
            wanted = client.inputs_of("predict_with")
            parameters = {name: value for name, value in answer.items() if name in wanted}
            queries = {
                name.removeprefix("query_"): value
                for name, value in given.items()
                if name not in support
            }
            answer |= client.call("predict_with", **queries, **parameters)
        else:
            answer = client.call("adapt_and_predict", **given)
    except grpc.RpcError as error:
        sys.exit(explained(error, options))
    examples.write(answer)


def explained(error, options):
    """Returns a sentence that says what to do about an error."""
    code, details = error.code(), error.details()
    if code == grpc.StatusCode.UNAVAILABLE:
        return f"Expected a model server at {options.server}, got no connection ({details})."
    if code == grpc.StatusCode.NOT_FOUND:
        return f"Expected a model that the server has loaded, got {details}; look at --model."
    if code == grpc.StatusCode.DEADLINE_EXCEEDED:
        return (
            f"Expected an answer within {options.timeout:g} s, got none; send fewer examples, or "
            "pass a longer --timeout."
        )
    return f"{code.name}: {details}"  # INVALID_ARGUMENT says what is wrong with the examples


if __name__ == "__main__":
    main()
