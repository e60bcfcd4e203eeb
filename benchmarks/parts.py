"""Memory and time of a meta-batch in parts: tasks or examples in pieces, and on two devices.

    python -m benchmarks.parts --output=benchmark_results

Every case has a process of its own: its peak of memory above that before the first meta-gradient,
its seconds (median of a few, after the first), and its largest relative difference from the case
before which all is computed at once. Two devices are two logical CPUs. Writes parts.json.
"""

from __future__ import annotations

import json
import statistics
from typing import Any

from absl import app, flags

from benchmarks.measuring import PeakMemory, apart, resident, seconds_of, write

_OUTPUT = flags.DEFINE_string("output", "benchmark_results", "Folder for parts.json.")
_CASE = flags.DEFINE_string("case", None, "Used by the program itself: the name of one case.")
_ROUNDS = 5

#: By name: the network, and arguments of `compile`; "devices" is a number of logical CPUs.
CASES: dict[str, tuple[str, dict[str, int]]] = {
    "images: 16 tasks at once": ("images", {}),
    "images: tasks_per_step=4": ("images", {"tasks_per_step": 4}),
    "images: tasks_per_step=1": ("images", {"tasks_per_step": 1}),
    "points: 20000 examples at once": ("points", {}),
    "points: examples_per_step=1000": ("points", {"examples_per_step": 1000}),
    "dense: one device": ("dense", {}),
    "dense: two devices": ("dense", {"devices": 2}),
    "few images: one device": ("few images", {}),
    "few images: two devices": ("few images", {"devices": 2}),
}


def problem(network: str) -> tuple[Any, str, Any]:
    """Returns a model, its loss and a batch of episodes."""
    import keras
    import numpy as np

    import amaml_tf as amaml

    keras.utils.set_random_seed(0)
    rng = np.random.default_rng(0)
    if "images" in network:
        tasks, size = (16, 42) if network == "images" else (8, 28)
        model = amaml.models.convolutional_network((size, size, 3), 5, filters=32)
        x = rng.normal(size=(tasks, 5, size, size, 3)).astype("float32")
        y = np.tile(np.arange(5), (tasks, 1))
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        return model, loss, ((x, y), (x, y))
    tasks, examples, units = (2, 20000, (256, 256)) if network == "points" else (16, 100, (64, 64))
    model = amaml.models.multilayer_perceptron((2,), 1, hidden_units=units)
    x = rng.normal(size=(tasks, examples, 2)).astype("float32")
    y = np.sin(x[..., :1])
    return model, "mse", ((x, y), (x[:, :100], y[:, :100]))


def measure(name: str) -> dict[str, Any]:
    """Returns what a case takes, and its meta-gradient's norm."""
    import tensorflow as tf

    network, options = CASES[name]
    given = dict(options)
    devices = given.pop("devices", 1)
    tf.config.set_logical_device_configuration(
        tf.config.list_physical_devices("CPU")[0],
        [tf.config.LogicalDeviceConfiguration()] * devices,
    )
    import amaml_tf as amaml

    model, loss, episodes = problem(network)
    learner = amaml.MetaLearner(model, amaml.algorithms.MAML(0.01, 5))
    if devices > 1:
        learner.distribute(amaml.distribution.mirrored())
    learner.compile("sgd", loss=loss, **given)
    before = resident()
    memory = PeakMemory()
    gradients = learner.meta_gradients(episodes).gradients
    seconds = [
        seconds_of(lambda: learner.meta_gradients(episodes).loss.numpy()) for _ in range(_ROUNDS)
    ]
    return {
        "name": name,
        "mib": memory.stop() - before,
        "seconds": statistics.median(seconds),
        "norm": float(tf.linalg.global_norm(gradients)),
    }


def main(_: list[str]) -> None:
    """Measures the cases, prints a table and writes it."""
    if _CASE.value:
        print(json.dumps(measure(_CASE.value)))
        return
    rows: list[dict[str, Any]] = []
    first: dict[str, Any] = {}
    print(f"{'':34}{'MiB':>8}{'seconds':>10}{'ratio':>8}{'difference':>12}")
    for name, (network, options) in CASES.items():
        row = apart("parts", f"--case={name}")
        if row is None:
            continue
        row["network"] = network
        if not options:
            first = row
        if first.get("network") != network:
            continue  # the case to compare with has failed
        row["ratio"] = row["seconds"] / first["seconds"]
        row["difference"] = abs(row["norm"] / first["norm"] - 1)
        rows.append(row)
        print(
            f"{name:34}{row['mib']:8.0f}{row['seconds']:10.3f}{row['ratio']:8.2f}"
            f"{row['difference']:12.1e}",
            flush=True,
        )
    write("parts", rows, _OUTPUT.value)


if __name__ == "__main__":
    app.run(main)
