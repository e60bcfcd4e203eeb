"""Sends labelled examples and queries to a model server by REST, and prints the predictions.

    python client_rest.py --support=support.csv --query=query.csv

It needs requests and numpy (and Pillow for images), no TensorFlow.
"""

import argparse
import sys

import examples
import requests

DTYPES = {"DT_FLOAT": "float32", "DT_DOUBLE": "float64", "DT_STRING": "str"}


class Client:
    """Calls the signatures of an export on a model server, by REST.

    Args:
        server: host and port.
        model: name of the model there.
        timeout: seconds to wait for an answer.
    """

    def __init__(self, server, model, timeout=30):
        self._url, self._timeout = f"http://{server}/v1/models/{model}", timeout

    def inputs_of(self, signature):
        """Returns dtype (a name) and shape of every input of a signature; -1 is any size."""
        metadata = self._answer(requests.get(f"{self._url}/metadata", timeout=self._timeout))
        infos = metadata["metadata"]["signature_def"]["signature_def"][signature]["inputs"]
        found = {}
        for name, info in infos.items():
            dtype = DTYPES.get(info["dtype"], info["dtype"].removeprefix("DT_").lower())
            sizes = info["tensor_shape"].get("dim", [])
            found[name] = (dtype, [int(size["size"]) for size in sizes])
        return found

    def call(self, signature, **inputs):
        """Returns the outputs of a signature by name, as lists."""
        body = {"signature_name": signature, "inputs": {k: v.tolist() for k, v in inputs.items()}}
        url = f"{self._url}:predict"
        return self._answer(requests.post(url, json=body, timeout=self._timeout))["outputs"]

    def _answer(self, response):
        """Returns what the server answers; exits with its message if that is an error."""
        try:
            content = response.json()
        except requests.JSONDecodeError:
            content = {"error": response.text[:200]}
        if response.status_code != requests.codes.ok:
            sys.exit(f"{response.status_code}: {content.get('error', content)}")
        return content


def main():
    """Runs the client."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--server", default="localhost:8501")
    parser.add_argument("--model", default="initialization")
    parser.add_argument("--support", required=True, help="labelled examples: CSV, .npz or folder")
    parser.add_argument("--query", required=True, help="what to predict: CSV, .npz or folder")
    parser.add_argument("--timeout", type=float, default=30, help="seconds")
    options = parser.parse_args()
    client = Client(options.server, options.model, options.timeout)
    try:
        specs = client.inputs_of("adapt_and_predict")
        given = examples.read(options.support, options.query, specs)
        answer = client.call("adapt_and_predict", **given)
    except requests.Timeout:
        sys.exit(
            f"Expected an answer within {options.timeout:g} s, got none; send fewer examples, or "
            "pass a longer --timeout."
        )
    except requests.ConnectionError as error:
        sys.exit(f"Expected a model server at {options.server}, got no connection ({error}).")
    examples.write(answer)


if __name__ == "__main__":
    main()
