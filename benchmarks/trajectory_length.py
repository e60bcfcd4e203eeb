"""Cost and accuracy of the meta-gradient against the length of the inner run.

    python -m benchmarks.trajectory_length --output=docs/figures

For every solver and adjoint: seconds of a meta-gradient (median, after compilation), evaluations,
Hessian-vector products, the process's peak memory after compilation, and the relative error
against a reference. Five Alpine tasks of 100 examples, the 2-32-32-1 network, float64. Every run
is a process of its own, so that peak memory means something. Writes a table and a figure.
"""

from __future__ import annotations

import itertools
import json
import pathlib
import statistics
import subprocess
import sys
import threading
import time
from typing import Any

from absl import app, flags

from amaml_tf.files import write_atomically

# Solver, adjoint, and the longest run to try it on.
CASES = {
    "RKC, discrete": ("RungeKuttaChebyshev()", "discrete", 5000.0),
    "RKC, continuous": ("RungeKuttaChebyshev()", "continuous", 5000.0),
    "Dormand-Prince, discrete": ("DormandPrince(1e-4, 1e-5)", "discrete", 500.0),
    "Dormand-Prince, continuous": ("DormandPrince(1e-4, 1e-5)", "continuous", 500.0),
    # It integrates u backwards, and is lost from about T = 5 on.
    "Dormand-Prince, backsolve": ("DormandPrince(1e-4, 1e-5)", "backsolve", 5.0),
    "gradient descent 0.01, discrete": ("GradientDescent(0.01)", "discrete", 500.0),
    "Heun 0.05, discrete": ("Heun(0.05)", "discrete", 500.0),
    "Runge-Kutta 4 0.05, discrete": ("RungeKutta4(0.05)", "discrete", 500.0),
}
OURS, SLOWEST = "RKC, discrete", "gradient descent 0.01, discrete"
REFERENCE = ("DormandPrince(1e-10, 1e-12, max_num_steps=65536)", "discrete")

_TIMES = flags.DEFINE_list("times", ["1", "5", "50", "500"], "Final times to run to.")
_OUTPUT = flags.DEFINE_string("output", "benchmark_results", "Folder for the table and figure.")
_MAX_REFERENCE = flags.DEFINE_float(
    "max_reference_time", 50.0, "Longest run for which to compute the reference gradient."
)
_RUN = flags.DEFINE_string("run", None, "Used by the program itself: the JSON of one run.")


class PeakMemory(threading.Thread):
    """Watches the resident memory of this process; `stop` returns its peak in MiB."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self._peak = 0
        self._stopped = threading.Event()
        self.start()

    def run(self) -> None:
        import psutil

        process = psutil.Process()
        while not self._stopped.wait(0.002):
            self._peak = max(self._peak, process.memory_info().rss)

    def stop(self) -> float:
        self._stopped.set()
        self.join()
        return self._peak / 2**20


def measure(solver: str, adjoint: str, final_time: float) -> dict[str, Any]:
    """Runs one case in this process."""
    import keras
    import numpy as np

    import amaml_tf as amaml

    keras.utils.set_random_seed(0)
    family = amaml.tasks.REGISTRY["alpine"](num_support=100, num_query=100, dtype="float64")
    model = amaml.models.multilayer_perceptron(
        family.input_shape, family.num_outputs, dtype="float64"
    )
    episodes = next(iter(family.episodes("test", batch_size=5, num_batches=1)))
    # The name comes from CASES above, not from a user.
    flow = amaml.GradientFlow(
        final_time=final_time,
        solver=eval(f"amaml.solvers.{solver}", {"amaml": amaml}),
        adjoint=adjoint,
    )
    learner = amaml.MetaLearner(model, amaml.algorithms.AdjointMAML(flow))
    learner.compile("sgd", loss=family.loss)
    start = time.perf_counter()
    result = learner.meta_gradients(episodes)
    first = time.perf_counter() - start
    memory = PeakMemory()
    seconds: list[float] = []
    while sum(seconds) < 2 and len(seconds) < 20:
        start = time.perf_counter()
        result = learner.meta_gradients(episodes)
        seconds.append(time.perf_counter() - start)
    forward, backward = result.diagnostics.forward, result.diagnostics.backward
    return {
        "seconds": statistics.median(seconds),
        "first_call_seconds": first,
        "gradients": int(np.max(forward.num_evaluations + backward.num_evaluations)),
        "hessian_vector_products": int(
            np.max(forward.num_jacobian_products + backward.num_vector_jacobian_products)
        ),
        "steps": int(np.max(forward.num_accepted_steps)),
        "growth": float(np.max(backward.growth)),
        "peak_mib": memory.stop(),
        "gradient": [float(v) for g in result.gradients for v in np.ravel(g)],
    }


def measure_apart(solver: str, adjoint: str, final_time: float) -> dict[str, Any] | None:
    """Runs one case in a process of its own; None if its flow fails."""
    case = json.dumps([solver, adjoint, final_time])
    command = [sys.executable, "-m", "benchmarks.trajectory_length", f"--run={case}"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    lines = [line for line in done.stdout.splitlines() if line.startswith("{")]
    if not lines:
        print(f"{solver}, {adjoint}, T = {final_time:g}: {done.stderr.strip().splitlines()[-1:]}")
        return None
    return json.loads(lines[-1])


def table(times: list[float]) -> list[dict[str, Any]]:
    """Measures all cases, and prints a line for each."""
    import numpy as np

    print(
        f"{'':32}{'T':>6}{'seconds':>10}{'gradients':>11}{'HVPs':>8}{'steps':>7}"
        f"{'peak MiB':>10}{'growth':>9}{'error':>10}"
    )
    rows = []
    for final_time in times:
        reference = None
        if final_time <= _MAX_REFERENCE.value:
            reference = measure_apart(*REFERENCE, final_time)
        for name, (solver, adjoint, longest) in CASES.items():
            if final_time > longest:
                continue
            row = measure_apart(solver, adjoint, final_time)
            if row is None:
                continue
            gradient = np.array(row.pop("gradient"))
            if reference is not None:
                exact = np.array(reference["gradient"])
                error = float(np.linalg.norm(gradient - exact) / np.linalg.norm(exact))
                if np.isfinite(error):  # JSON has no infinity
                    row["error"] = error
            rows.append({"case": name, "final_time": final_time, **row})
            shown = f"{row['error']:10.1e}" if "error" in row else f"{'':>10}"
            print(
                f"{name:32}{final_time:6g}{row['seconds']:10.3f}{row['gradients']:11d}"
                f"{row['hessian_vector_products']:8d}{row['steps']:7d}{row['peak_mib']:10.0f}"
                f"{row['growth']:9.2g}{shown}",
                flush=True,
            )
    return rows


def summary(rows: list[dict[str, Any]]) -> str:
    """Returns how time and memory grow with the length of the run, and what ours saves."""
    found = {(row["case"], row["final_time"]): row for row in rows}
    times = sorted({row["final_time"] for row in rows})
    lines = []
    for name in CASES:
        known = [found[name, t] for t in times if (name, t) in found]
        growth = [
            f"x{after['seconds'] / before['seconds']:.1f} to T = {after['final_time']:g}"
            for before, after in itertools.pairwise(known)
        ]
        if growth:
            memory = known[-1]["peak_mib"] / known[0]["peak_mib"] - 1
            lines.append(f"{name}: time {', '.join(growth)}; peak memory {memory:+.1%}")
    for t in times:
        if (OURS, t) in found and (SLOWEST, t) in found:
            ratio = found[SLOWEST, t]["seconds"] / found[OURS, t]["seconds"]
            lines.append(f"T = {t:g}: {OURS} is {ratio:.1f} times as fast as {SLOWEST}.")
    return "\n".join(lines)


def write(rows: list[dict[str, Any]], folder: pathlib.Path) -> None:
    """Writes the numbers as JSON and as a table in Markdown, with where they come from."""
    from benchmarks.provenance import provenance

    origin = provenance("benchmarks.trajectory_length")
    values = json.dumps({"provenance": origin, "rows": rows}, indent=1) + "\n"
    write_atomically(folder / "trajectory_length.json", values)
    lines = [
        "# Cost and accuracy of the meta-gradient against the length of the inner run",
        "",
        "Five Alpine tasks of 100 examples, the 2-32-32-1 network, float64. T is inner learning "
        "rate times inner steps. Gradients and Hessian-vector products are those of the slowest "
        "task, estimates of the spectral radius and recomputation included; memory is the peak of "
        "the process after compilation; growth is the largest norm of λ(t) over that of λ(T); the "
        "error is relative to the exact flow's meta-gradient (Dormand-Prince at 1e-10).",
        "",
        "| | T | seconds | gradients | HVPs | steps | peak MiB | growth | error |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        error = f"{row['error']:.1e}" if "error" in row else ""
        lines.append(
            f"| {row['case']} | {row['final_time']:g} | {row['seconds']:.3f} | {row['gradients']} "
            f"| {row['hessian_vector_products']} | {row['steps']} | {row['peak_mib']:.0f} "
            f"| {row['growth']:.2g} | {error} |"
        )
    lines += ["", *(f"- {line}" for line in summary(rows).splitlines()), ""]
    lines += [f"- {name}: `{value}`" for name, value in origin.items()]
    write_atomically(folder / "trajectory_length.md", "\n".join([*lines, ""]))


def draw(rows: list[dict[str, Any]], path: pathlib.Path) -> None:
    """Draws time, memory, evaluations and error against T."""
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    panels = {
        "seconds": "seconds a meta-gradient",
        "peak_mib": "peak memory of the process, MiB",
        "gradients": "gradients of the support loss",
        "error": "relative error of the meta-gradient",
    }
    figure, axes = plt.subplots(1, len(panels), figsize=(14, 3.4), layout="constrained")
    for axis, (key, label) in zip(axes, panels.items(), strict=True):
        for name in CASES:
            points = [(r["final_time"], r[key]) for r in rows if r["case"] == name and key in r]
            if points:
                axis.plot(*zip(*points, strict=True), marker="o", markersize=4, label=name)
        axis.set(xscale="log", yscale="log", xlabel="final time T", title=label)
        axis.title.set_fontsize(10)
        axis.grid(alpha=0.3)
    axes[1].set_yscale("linear")
    axes[1].set_ylim(bottom=0)
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=5)
    figure.savefig(path, dpi=150)


def main(_: list[str]) -> None:
    """Runs one case, or all of them."""
    if _RUN.value:
        print(json.dumps(measure(*json.loads(_RUN.value))))
        return
    folder = pathlib.Path(_OUTPUT.value)
    folder.mkdir(parents=True, exist_ok=True)
    rows = table([float(t) for t in _TIMES.value])
    print(summary(rows))
    write(rows, folder)
    draw(rows, folder / "trajectory_length.png")
    print(f"Written to {folder}/trajectory_length.md, .json and .png.")


if __name__ == "__main__":
    app.run(main)
