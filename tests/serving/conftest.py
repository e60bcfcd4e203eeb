"""Exports that the tests of serving share."""

import csv
import importlib
import pathlib
import sys

import numpy as np
import pytest

import amaml_tf as amaml

EXPORT = pathlib.Path(__file__).parents[2] / "export"


@pytest.fixture(scope="session")
def served(tmp_path_factory):
    """A learner of functions of two variables, and the folder of its export."""
    model = amaml.models.multilayer_perceptron((2,), 1, (8,), seed=0)
    flow = amaml.GradientFlow(final_time=0.5, solver=amaml.solvers.RungeKuttaChebyshev())
    learner = amaml.MetaLearner(model, amaml.algorithms.AdjointMAML(flow))
    learner.compile(loss="mse", jit_compile="off")
    folder = tmp_path_factory.mktemp("exports") / "initialization"
    amaml.save_initialization(learner, folder)
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


def examples(size, seed=0):
    """Returns examples of a function of two variables."""
    x = np.random.default_rng(seed).normal(size=(size, 2)).astype("float32")
    return x, np.sin(x[:, :1] + 2 * x[:, 1:])


def write_csv(path, x, y=None):
    """Writes examples to a CSV file, with the target in the last column if there is one."""
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["first", "second"] + ([] if y is None else ["target"]))
        writer.writerows(x if y is None else np.hstack([x, y]))
    return path
