"""Time and memory of a meta-gradient against the size of the problem.

    python -m benchmarks.scaling --output=docs/results

Draws them against the number of tasks (1 to 256), of parameters (1e3 to 1e7), the support
examples of a task (10 to 10,000) and the time T. The problem is Alpine with the default flow.
Every point has a process of its own. *memory* is its peak over what it held before the first
meta-gradient: states, work, results, and what compilation takes, but not libraries, model and data.
Writes scaling.json, .md and .png.
"""

from __future__ import annotations

import json
import pathlib
from typing import Any

import numpy as np
from absl import app, flags

from benchmarks.measuring import PeakMemory, apart, gradients_of, resident, seconds_of, write

#: By what is varied: its values, and the problem beside it.
SERIES: dict[str, tuple[list[float], dict[str, float]]] = {
    "tasks": ([1, 4, 16, 64, 256], {}),
    "width": ([30, 98, 315, 998, 3160], {"tasks": 2, "support": 10, "time": 0.1}),
    "support": ([10, 100, 1_000, 10_000], {}),
    "time": ([0.1, 0.5, 5, 50], {}),
}
_PROBLEM = {"tasks": 5, "width": 32, "support": 100, "time": 5.0}
LABELS = {
    "tasks": "tasks",
    "width": "parameters",
    "support": "support examples of a task",
    "time": "time T",
}


def measure(tasks: int, width: int, support: int, time: float) -> dict[str, Any]:
    """Returns the time and the memory of one problem, measured in this process."""
    import keras

    import amaml_tf as amaml

    keras.utils.set_random_seed(0)
    family = amaml.tasks.REGISTRY["alpine"](num_support=support, num_query=100)
    model = amaml.models.multilayer_perceptron(
        family.input_shape, family.num_outputs, hidden_units=(width, width)
    )
    episodes = next(iter(family.episodes("test", batch_size=tasks, num_batches=1)))
    flow = amaml.GradientFlow(final_time=time)
    learner = amaml.MetaLearner(model, amaml.algorithms.AdjointMAML(flow))
    learner.compile("sgd", loss=family.loss)
    before, memory = resident(), PeakMemory()
    gradients = gradients_of(learner.meta_gradients(episodes).diagnostics)
    seconds: list[float] = []
    while len(seconds) < 2 or (sum(seconds) < 2 and len(seconds) < 30):
        seconds.append(seconds_of(lambda: learner.meta_gradients(episodes).loss.numpy()))
    return {
        "parameters": model.count_params(),
        "seconds": float(np.median(seconds)),
        "memory_mib": memory.stop() - before,
        "gradients": gradients,
    }


def measured(name: str) -> list[dict[str, Any]]:
    """Returns the points of one series, each measured in a process of its own."""
    values, fixed = SERIES[name]
    rows = []
    for value in values:
        problem = _PROBLEM | fixed | {name: value}
        row = apart("scaling", f"--run={json.dumps(problem)}")
        if row is None:
            continue
        x = row["parameters"] if name == "width" else value
        rows.append({"series": name, "x": x, **problem, **row})
    return rows


def slope_of(rows: list[dict[str, Any]]) -> tuple[float, float] | None:
    """Returns the slope and the largest deviation of a line through the memory, in MiB.

    Its points are weighted for relative deviations. None if there are fewer than three.
    """
    if len(rows) < 3:
        return None
    x, y = (np.array([row[key] for row in rows], float) for key in ("x", "memory_mib"))
    slope, offset = np.polyfit(x, y, 1, w=1 / np.maximum(y, 1))
    return float(slope), float(np.max(np.abs(slope * x + offset - y)))


def report(rows: list[dict[str, Any]]) -> str:
    """Returns the table in Markdown."""
    lines = [
        "# Time and memory of a meta-gradient against the size of the problem",
        "",
        "The default flow on Alpine, a dense network with two hidden layers, float32. Where "
        "nothing else is varied: 5 tasks of 100 examples, 1,185 parameters, T = 5; against "
        "parameters: 2 tasks of 10 examples, T = 0.1. Memory is the peak of the process, "
        "without libraries, model and data.",
        "",
        "| varied | value | ms | ms a task | gradients | memory, MiB |",
        "|---|---|---|---|---|---|",
    ]
    lines += [
        f"| {LABELS[row['series']]} | {row['x']:,g} | {1e3 * row['seconds']:.4g} "
        f"| {1e3 * row['seconds'] / row['tasks']:.3g} | {row['gradients']} "
        f"| {row['memory_mib']:.0f} |"
        for row in rows
    ]
    lines.append("")
    for name in SERIES:
        found = slope_of([row for row in rows if row["series"] == name])
        if found is not None and name in ("tasks", "width"):
            unit = "a task" if name == "tasks" else "a million parameters"
            slope = found[0] * (1 if name == "tasks" else 1e6)
            lines.append(
                f"- Memory against {LABELS[name]}: {slope:.3g} MiB {unit}; the line is off by at "
                f"most {found[1]:.0f} MiB."
            )
    return "\n".join([*lines, ""])


def draw(rows: list[dict[str, Any]], path: pathlib.Path) -> None:
    """Draws time and memory of each series."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(3.2 * len(SERIES), 5.5), layout="constrained")
    axes = figure.subplots(2, len(SERIES), squeeze=False)
    for column, name in zip(axes.T, SERIES, strict=True):
        points = [row for row in rows if row["series"] == name]
        x = [row["x"] for row in points]
        column[0].plot(x, [1e3 * row["seconds"] / row["tasks"] for row in points], marker="o")
        column[1].plot(x, [row["memory_mib"] for row in points], marker="o")
        column[1].set_xlabel(LABELS[name])
        for axis in column:
            axis.set(xscale="log", yscale="log")
            axis.grid(alpha=0.3)
    axes[0][0].set_ylabel("ms a task")
    axes[1][0].set_ylabel("memory, MiB")
    figure.savefig(path, dpi=150)


def main(_: list[str]) -> None:
    """Measures one problem, or all series; writes a table and a figure."""
    from amaml_tf.files import write_atomically

    if flags.FLAGS.run:
        given = json.loads(flags.FLAGS.run)
        counts = {key: int(given[key]) for key in ("tasks", "width", "support")}
        print(json.dumps(measure(time=given["time"], **counts)))
        return
    rows = [row for name in flags.FLAGS.series for row in measured(name)]
    folder = pathlib.Path(flags.FLAGS.output)
    write("scaling", rows, flags.FLAGS.output)
    write_atomically(folder / "scaling.md", report(rows))
    draw(rows, folder / "scaling.png")
    print(report(rows))


if __name__ == "__main__":  # here, because tests import this beside others with such flags
    flags.DEFINE_string("output", "benchmark_results", "Folder of the results.")
    flags.DEFINE_multi_enum("series", list(SERIES), list(SERIES), "What to vary.")
    flags.DEFINE_string("run", None, "Used by the program itself: the JSON of one problem.")
    app.run(main)
