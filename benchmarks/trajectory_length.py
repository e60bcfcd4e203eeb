"""Cost and accuracy of the meta-gradient against the length of the inner run.

    python -m benchmarks.trajectory_length --output=docs/results

For every solver and adjoint: seconds of a meta-gradient (median, after compilation), evaluations,
Hessian-vector products, the process's peak memory after compilation, and the relative error
against a reference. Five Alpine tasks of 100 examples, the 2-32-32-1 network, float64. Every run
has its own process, so that its peak memory is meaningful. Ratios of times come from one more
process, in which the compared cases take turns, so that a slow phase of the machine slows all of
them. Writes a table and a figure (`benchmarks.trajectory_report`).
"""

from __future__ import annotations

import json
import pathlib
import statistics
import time
from collections.abc import Callable
from typing import Any

from absl import app, flags

from benchmarks.measuring import PeakMemory, apart, seconds_of
from benchmarks.trajectory_report import CASES, CASES_IN_TURN, draw, summary, write

_ROUNDS = 15
_SLOW, _SLOW_ROUNDS = 2.0, 3  # cases above 2 seconds take part in only 3 rounds
REFERENCE = ("DormandPrince(1e-10, 1e-12, max_num_steps=65536)", "discrete")

_TIMES = flags.DEFINE_list("times", ["1", "5", "50", "500"], "Final times to run to.")
_OUTPUT = flags.DEFINE_string("output", "benchmark_results", "Folder for the table and figure.")
_MAX_REFERENCE = flags.DEFINE_float(
    "max_reference_time", 500.0, "Longest run for which to compute the reference gradient."
)
_RUN = flags.DEFINE_string("run", None, "Used by the program itself: the JSON of one run.")
_IN_TURN = flags.DEFINE_bool("in_turn", False, "Only time what is compared, case by case in turn.")


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
    # The name comes from CASES, not from a user.
    flow = amaml.GradientFlow(
        final_time=final_time,
        solver=eval(f"amaml.solvers.{solver}", {"amaml": amaml}),
        adjoint=adjoint,
    )
    learner = amaml.MetaLearner(model, amaml.algorithms.AdjointMAML(flow))
    learner.compile("sgd", loss=family.loss)
    return lambda: learner.meta_gradients(episodes)


def measure(solver: str, adjoint: str, final_time: float) -> dict[str, Any]:
    """Returns the measurements of one case, made in this process."""
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
    """Returns the seconds of the compared cases, by case and T (as text), one number per round.

    Cases take turns within a round, so that a slow phase of the machine slows all of them.
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


def measure_apart(solver: str, adjoint: str, final_time: float) -> dict[str, Any] | None:
    """Returns the measurements of one case, made in a new process; None if its flow fails."""
    return apart("trajectory_length", f"--run={json.dumps([solver, adjoint, final_time])}")


def table(times: list[float]) -> list[dict[str, Any]]:
    """Measures all cases, prints a line for each, and returns the results."""
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


def main(_: list[str]) -> None:
    """Runs one case, or the compared cases in turn, or all cases."""
    times = [float(t) for t in _TIMES.value]
    if _RUN.value:
        print(json.dumps(measure(*json.loads(_RUN.value))))
        return
    if _IN_TURN.value:
        print(json.dumps(time_in_turn(times)))
        return
    folder = pathlib.Path(_OUTPUT.value)
    folder.mkdir(parents=True, exist_ok=True)
    in_turn = (
        apart("trajectory_length", "--in_turn", f"--times={','.join(f'{t:g}' for t in times)}")
        or {}
    )
    rows = table(times)
    print(*summary(rows, in_turn), sep="\n")
    write(rows, in_turn, folder)
    draw(rows, folder / "trajectory_length.png")
    print(f"Written to {folder}/trajectory_length.md, .json and .png.")


if __name__ == "__main__":
    app.run(main)
