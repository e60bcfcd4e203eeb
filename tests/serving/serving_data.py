"""A learner that the tests of serving export, and the data that they send."""

import csv
import pathlib

import numpy as np

import amaml_tf as amaml
from amaml_tf.saved_model.bounds import default_bounds

EXPORT = pathlib.Path(__file__).parents[2] / "export"


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


def small_learner():
    """Returns a learner of functions of two variables, which is not trained."""
    model = amaml.models.multilayer_perceptron((2,), 1, (8,), seed=0)
    flow = amaml.GradientFlow(final_time=0.5, solver=amaml.solvers.RungeKuttaChebyshev())
    learner = amaml.MetaLearner(model, amaml.algorithms.AdjointMAML(flow))
    learner.compile(loss="mse", jit_compile="off")
    return learner


def export(learner, folder, **options):
    """Exports `learner` with the bounds of a run whose tasks have 12 rows and take 31 gradients."""
    bounds = default_bounds(learner.algorithm, evaluations=31, rows=12)
    return amaml.save_initialization(learner, folder, bounds=bounds, **options)
