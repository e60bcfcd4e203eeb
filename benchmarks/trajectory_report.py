"""The table and the figure of `benchmarks.trajectory_length`."""

from __future__ import annotations

import itertools
import json
import pathlib
import statistics
from typing import Any

from amaml_tf.files import write_atomically
from amaml_tf.provenance import provenance

# Solver, adjoint, and the longest run to try. TFP's BDF is not here: with the dense Jacobian
# of all parameters and tasks, one meta-gradient takes more than four minutes at T = 1.
CASES = {
    "RKC, discrete": ("RungeKuttaChebyshev()", "discrete", 5000.0),
    "RKC, continuous": ("RungeKuttaChebyshev()", "continuous", 5000.0),
    "Dormand-Prince, discrete": ("DormandPrince(1e-4, 1e-5)", "discrete", 500.0),
    "Dormand-Prince, continuous": ("DormandPrince(1e-4, 1e-5)", "continuous", 500.0),
    # It integrates u backwards, which fails from about T = 5 on.
    "Dormand-Prince, backsolve": ("DormandPrince(1e-4, 1e-5)", "backsolve", 5.0),
    "gradient descent 0.01, discrete": ("GradientDescent(0.01)", "discrete", 500.0),
    "gradient descent 0.01, continuous": ("GradientDescent(0.01)", "continuous", 50.0),
    "Heun 0.05, discrete": ("Heun(0.05)", "discrete", 500.0),
    "Heun 0.05, continuous": ("Heun(0.05)", "continuous", 50.0),
    "Runge-Kutta 4 0.05, discrete": ("RungeKutta4(0.05)", "discrete", 500.0),
    "Runge-Kutta 4 0.05, continuous": ("RungeKutta4(0.05)", "continuous", 50.0),
}
# The cases timed in turn: ours, and those it is compared with.
OURS = "RKC, discrete"
CASES_IN_TURN = (OURS, "Dormand-Prince, discrete", "gradient descent 0.01, discrete")


def summary(rows: list[dict[str, Any]], in_turn: dict[str, dict[str, list[float]]]) -> list[str]:
    """Returns lines on how time and memory grow with the run's length, and on what ours saves."""
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
    """Returns the median ratio over the rounds that both took part in."""
    return statistics.median(a / b for a, b in zip(some, others, strict=False))


def write(
    rows: list[dict[str, Any]], in_turn: dict[str, dict[str, list[float]]], folder: pathlib.Path
) -> None:
    """Writes the numbers as JSON and as a table in Markdown, with their provenance."""
    origin = provenance("python -m benchmarks.trajectory_length")
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
    """Draws time, memory, evaluations and error against T: colours are solvers, dashes adjoints."""
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
