"""Cost and accuracy of the meta-gradient against the length of the inner run.

    python -m benchmarks.trajectory_length --output=docs/figures

For every solver and adjoint: seconds of a meta-gradient (median, after compilation), evaluations,
Hessian-vector products, the process's peak memory after compilation, and the relative error
against a reference. Five Alpine tasks of 100 examples, the 2-32-32-1 network, float64. Every run
is a process of its own, so that peak memory means something. Ratios of times are of one more
process, which takes what it compares in turn, so that a machine that slows down slows them all.
Writes a table and a figure.
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
from collections.abc import Callable
from typing import Any

from absl import app, flags

from amaml_tf.files import write_atomically

# Solver, adjoint, and the longest run to try it on. TFP's BDF is not here: with the dense Jacobian
# of all parameters and tasks, one meta-gradient takes more than four minutes at T = 1.
CASES = {
    "RKC, discrete": ("RungeKuttaChebyshev()", "discrete", 5000.0),
    "RKC, continuous": ("RungeKuttaChebyshev()", "continuous", 5000.0),
    "Dormand-Prince, discrete": ("DormandPrince(1e-4, 1e-5)", "discrete", 500.0),
    "Dormand-Prince, continuous": ("DormandPrince(1e-4, 1e-5)", "continuous", 500.0),
    # It integrates u backwards, and is lost from about T = 5 on.
    "Dormand-Prince, backsolve": ("DormandPrince(1e-4, 1e-5)", "backsolve", 5.0),
    "gradient descent 0.01, discrete": ("GradientDescent(0.01)", "discrete", 500.0),
    "gradient descent 0.01, continuous": ("GradientDescent(0.01)", "continuous", 50.0),
    "Heun 0.05, discrete": ("Heun(0.05)", "discrete", 500.0),
    "Heun 0.05, continuous": ("Heun(0.05)", "continuous", 50.0),
    "Runge-Kutta 4 0.05, discrete": ("RungeKutta4(0.05)", "discrete", 500.0),
    "Runge-Kutta 4 0.05, continuous": ("RungeKutta4(0.05)", "continuous", 50.0),
}
# What is timed in turn: ours, and what it is compared with.
OURS = "RKC, discrete"
CASES_IN_TURN = (OURS, "Dormand-Prince, discrete", "gradient descent 0.01, discrete")
_ROUNDS = 15
_SLOW, _SLOW_ROUNDS = 2.0, 3  # what takes more seconds than that takes part in so many rounds
REFERENCE = ("DormandPrince(1e-10, 1e-12, max_num_steps=65536)", "discrete")

_TIMES = flags.DEFINE_list("times", ["1", "5", "50", "500"], "Final times to run to.")
_OUTPUT = flags.DEFINE_string("output", "benchmark_results", "Folder for the table and figure.")
_MAX_REFERENCE = flags.DEFINE_float(
    "max_reference_time", 500.0, "Longest run for which to compute the reference gradient."
)
_RUN = flags.DEFINE_string("run", None, "Used by the program itself: the JSON of one run.")
_IN_TURN = flags.DEFINE_bool("in_turn", False, "Only time what is compared, case by case in turn.")


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


def meta_gradient_of(solver: str, adjoint: str, final_time: float) -> Callable[[], Any]:
    """Returns a function that computes the meta-gradient of a case."""
    import keras

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
    return lambda: learner.meta_gradients(episodes)


def seconds_of(call: Callable[[], Any]) -> float:
    """Returns how long one call takes."""
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def measure(solver: str, adjoint: str, final_time: float) -> dict[str, Any]:
    """Runs one case in this process."""
    import numpy as np

    call = meta_gradient_of(solver, adjoint, final_time)
    first = seconds_of(call)
    memory = PeakMemory()
    seconds: list[float] = []
    while sum(seconds) < 2 and len(seconds) < 20:
        start = time.perf_counter()
        result = call()
        seconds.append(time.perf_counter() - start)
    peak = memory.stop()
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
        "peak_mib": peak,
        "gradient": [float(v) for g in result.gradients for v in np.ravel(g)],
    }


def time_in_turn(times: list[float]) -> dict[str, dict[str, list[float]]]:
    """Returns the seconds of what is to be compared, by case and T (as text), one number a round.

    Cases take turns within a round, so that what slows the machine for a while slows all of them.
    """
    calls = {
        (name, f"{final_time:g}"): meta_gradient_of(*CASES[name][:2], final_time)
        for name in CASES_IN_TURN
        for final_time in times
    }
    for call in calls.values():
        call()  # compiles it
    found: dict[str, dict[str, list[float]]] = {name: {} for name in CASES_IN_TURN}
    for number in range(_ROUNDS):
        for (name, final_time), call in calls.items():
            seconds = found[name].setdefault(final_time, [])
            if number < _SLOW_ROUNDS or seconds[0] < _SLOW:
                seconds.append(seconds_of(call))
    return found


def apart(*arguments: str) -> Any:
    """Returns what this program finds with `arguments` in a process of its own, or None."""
    command = [sys.executable, "-m", "benchmarks.trajectory_length", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    lines = [line for line in done.stdout.splitlines() if line.startswith("{")]
    if not lines:
        print(f"{' '.join(arguments)}: {done.stderr.strip().splitlines()[-1:]}")
        return None
    return json.loads(lines[-1])


def measure_apart(solver: str, adjoint: str, final_time: float) -> dict[str, Any] | None:
    """Runs one case in a process of its own; None if its flow fails."""
    return apart(f"--run={json.dumps([solver, adjoint, final_time])}")


def table(times: list[float]) -> list[dict[str, Any]]:
    """Measures all cases, and prints a line for each."""
    import numpy as np

    print(
        f"{'':34}{'T':>6}{'seconds':>10}{'gradients':>11}{'HVPs':>8}{'steps':>7}"
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
                f"{name:34}{final_time:6g}{row['seconds']:10.3f}{row['gradients']:11d}"
                f"{row['hessian_vector_products']:8d}{row['steps']:7d}{row['peak_mib']:10.0f}"
                f"{row['growth']:9.2g}{shown}",
                flush=True,
            )
    return rows


def summary(rows: list[dict[str, Any]], in_turn: dict[str, dict[str, list[float]]]) -> list[str]:
    """Returns lines: how time and memory grow with the length of the run, and what ours saves."""
    lines = []
    for name, seconds in in_turn.items():
        growth = [
            f"x{_ratio(seconds[after], seconds[before]):.1f} from T = {before} to {after}"
            for before, after in itertools.pairwise(seconds)
        ]
        lines.append(f"Time of {name}: {', '.join(growth)}.")
    for name in in_turn:
        if name != OURS:
            against = [
                f"{_ratio(seconds, in_turn[OURS][t]):.1f} at T = {t}"
                for t, seconds in in_turn[name].items()
            ]
            lines.append(f"Time of {name} over that of {OURS}: {', '.join(against)}.")
    for name in CASES:
        known = [row for row in rows if row["case"] == name]
        if len(known) > 1:
            first, last = known[0], known[-1]
            lines.append(
                f"Peak memory of {name}, from T = {first['final_time']:g} to "
                f"{last['final_time']:g}: {last['peak_mib'] / first['peak_mib'] - 1:+.1%}."
            )
    return lines


def _ratio(some: list[float], others: list[float]) -> float:
    """Median over the rounds that both took part in."""
    return statistics.median(a / b for a, b in zip(some, others, strict=False))


def write(
    rows: list[dict[str, Any]], in_turn: dict[str, dict[str, list[float]]], folder: pathlib.Path
) -> None:
    """Writes the numbers as JSON and as a table in Markdown, with where they come from."""
    from benchmarks.provenance import provenance

    origin = provenance("benchmarks.trajectory_length")
    values = json.dumps({"provenance": origin, "rows": rows, "in_turn": in_turn}, indent=1) + "\n"
    write_atomically(folder / "trajectory_length.json", values)
    lines = [
        "# Cost and accuracy of the meta-gradient against the length of the inner run",
        "",
        "Five Alpine tasks of 100 examples, the 2-32-32-1 network, float64. T is inner learning "
        "rate times inner steps. Gradients and Hessian-vector products are those of the slowest "
        "task, estimates of the spectral radius and recomputation included; memory is the peak of "
        "the process after compilation; growth is the largest norm of λ(t) over that of λ(T); the "
        "error is relative to the exact flow's meta-gradient (Dormand-Prince at 1e-10). Ratios of "
        "times, below, are medians of cases that took turns in one process.",
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
    lines += ["", *(f"- {line}" for line in summary(rows, in_turn)), ""]
    lines += [f"- {name}: `{value}`" for name, value in origin.items()]
    write_atomically(folder / "trajectory_length.md", "\n".join([*lines, ""]))


def draw(rows: list[dict[str, Any]], path: pathlib.Path) -> None:
    """Draws time, memory, evaluations and error against T: a colour a solver, a dash an adjoint."""
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    panels = {
        "seconds": "seconds a meta-gradient",
        "peak_mib": "peak memory of the process, MiB",
        "gradients": "gradients of the support loss",
        "error": "relative error of the meta-gradient",
    }
    dashes = {"discrete": "-", "continuous": "--", "backsolve": ":"}
    solvers = list(dict.fromkeys(solver for solver, _, _ in CASES.values()))
    figure, axes = plt.subplots(1, len(panels), figsize=(14, 3.8), layout="constrained")
    for axis, (key, label) in zip(axes, panels.items(), strict=True):
        for name, (solver, adjoint, _) in CASES.items():
            points = [(r["final_time"], r[key]) for r in rows if r["case"] == name and key in r]
            if points:
                line = {"color": f"C{solvers.index(solver)}", "linestyle": dashes[adjoint]}
                axis.plot(*zip(*points, strict=True), marker="o", markersize=4, label=name, **line)
        axis.set(xscale="log", yscale="log", xlabel="final time T", title=label)
        axis.title.set_fontsize(10)
        axis.grid(alpha=0.3)
    axes[1].set_yscale("linear")
    axes[1].set_ylim(bottom=0)
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=4)
    figure.savefig(path, dpi=150)


def main(_: list[str]) -> None:
    """Runs one case, or those in turn, or all of them."""
    times = [float(t) for t in _TIMES.value]
    if _RUN.value:
        print(json.dumps(measure(*json.loads(_RUN.value))))
        return
    if _IN_TURN.value:
        print(json.dumps(time_in_turn(times)))
        return
    folder = pathlib.Path(_OUTPUT.value)
    folder.mkdir(parents=True, exist_ok=True)
    in_turn = apart("--in_turn", f"--times={','.join(f'{t:g}' for t in times)}") or {}
    rows = table(times)
    print(*summary(rows, in_turn), sep="\n")
    write(rows, in_turn, folder)
    draw(rows, folder / "trajectory_length.png")
    print(f"Written to {folder}/trajectory_length.md, .json and .png.")


if __name__ == "__main__":
    app.run(main)
