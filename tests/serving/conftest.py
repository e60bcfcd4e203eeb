"""Exports that the tests of serving share."""

import importlib
import sys

import pytest
from serving_data import EXPORT, export, small_learner


@pytest.fixture(scope="session")
def served(tmp_path_factory):
    """A learner of functions of two variables, and the folder of its export."""
    learner = small_learner()
    folder = tmp_path_factory.mktemp("exports") / "initialization"
    export(learner, folder)
    return learner, folder


@pytest.fixture(scope="session")
def client_module():
    """The module of the gRPC client in export/, which imports the module beside it."""
    pytest.importorskip(
        "tensorflow_serving", reason="tensorflow-serving-api is not there: pip install '.[serving]'"
    )
    sys.path.insert(0, str(EXPORT))
    try:
        yield importlib.import_module("client_grpc")
    finally:
        sys.path.remove(str(EXPORT))
