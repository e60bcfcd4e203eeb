"""Sends labelled examples and queries to a model server by REST, and prints the predictions.

    python client_rest.py --support=support.csv --query=query.csv

It needs requests and numpy (and Pillow for images), no TensorFlow.
"""

import argparse
import sys

import examples
import requests


def inputs_of(url, signature, timeout):
    """Returns dtype (a name) and shape of every input of a signature; -1 is any size."""
    answer = requests.get(f"{url}/metadata", timeout=timeout)
    answer.raise_for_status()
    signatures = answer.json()["metadata"]["signature_def"]["signature_def"]
    names = {"DT_FLOAT": "float32", "DT_DOUBLE": "float64", "DT_STRING": "str"}
    found = {}
    for name, info in signatures[signature]["inputs"].items():
        dtype = names.get(info["dtype"], info["dtype"].removeprefix("DT_").lower())
        found[name] = (dtype, [int(size["size"]) for size in info["tensor_shape"].get("dim", [])])
    return found


def call(url, signature, timeout, **inputs):
    """Returns the outputs of a signature by name, as lists; exits with the server's message."""
    body = {"signature_name": signature, "inputs": {k: v.tolist() for k, v in inputs.items()}}
    answer = requests.post(f"{url}:predict", json=body, timeout=timeout)
    if answer.status_code != requests.codes.ok:
        sys.exit(f"{answer.status_code}: {answer.json()['error']}")
    return answer.json()["outputs"]


def main():
    """Runs the client."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--server", default="localhost:8501")
    parser.add_argument("--model", default="initialization")
    parser.add_argument("--support", required=True, help="labelled examples: CSV file or folder")
    parser.add_argument("--query", required=True, help="what to predict: CSV file or folder")
    parser.add_argument("--timeout", type=float, default=30, help="seconds")
    options = parser.parse_args()
    url = f"http://{options.server}/v1/models/{options.model}"
    specs = inputs_of(url, "adapt_and_predict", options.timeout)
    dtype, (_, *shape) = specs["support_x"]
    target_dtype, target_shape = specs["support_y"]
    support_x, support_y = examples.read_support(
        options.support, dtype, shape, target_dtype, len(target_shape)
    )
    query_x = examples.read_queries(options.query, dtype, shape)
    answer = call(
        url,
        "adapt_and_predict",
        options.timeout,
        support_x=support_x,
        support_y=support_y,
        query_x=query_x,
    )
    before, after = answer["support_loss_before"], answer["support_loss_after"]
    print(f"loss of the support set: {before:.4g}, after adaptation {after:.4g}", file=sys.stderr)
    for row in answer["predictions"]:
        print(*row, sep=",")


if __name__ == "__main__":
    main()
