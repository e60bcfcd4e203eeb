"""Data that the tests of serving send."""

import csv
import pathlib

import numpy as np

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
