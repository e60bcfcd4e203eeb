"""The memory of a meta-gradient of a large model, each case in a process of its own.

    python -m benchmarks.memory --output=benchmark_results

Two tasks of ten examples and a dense network with ten million parameters, float32. *before* is what
the process held before the first meta-gradient: libraries, model and data. *peak* is the largest
resident memory of the process, compilation included; *states* is what came on top, over the memory
of one state of all tasks. XLA compiles as for the commands. Writes memory.json.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from typing import Any

from absl import app, flags

from benchmarks.measuring import PeakMemory, apart, gradients_of, resident, seconds_of, write

_NUM_TASKS, _NUM_EXAMPLES = 2, 10

_OUTPUT = flags.DEFINE_string("output", "benchmark_results", "Folder for memory.json.")
_WIDTH = flags.DEFINE_integer("width", 3150, "Hidden units; 3,150 are 9.9 million parameters.")
_RUN = flags.DEFINE_string("run", None, "Used by the program itself: the case to measure.")


def _flow(final_time: float) -> Callable[[Any], Any]:
    return lambda amaml: amaml.algorithms.AdjointMAML(amaml.GradientFlow(final_time=final_time))


#: By name: what makes the algorithm from the package.
CASES: dict[str, Callable[[Any], Any]] = {
    "flow to 0.5": _flow(0.5),
    "flow to 5": _flow(5.0),
    "flow to 50": _flow(50.0),
    "MAML 5 steps": lambda amaml: amaml.algorithms.MAML(0.01, 5),
}

_CASES = flags.DEFINE_multi_enum("case", list(CASES), list(CASES), "Case to measure. Default: all.")


def measure(name: str) -> dict[str, Any]:
    """Returns the memory of a case in MiB, measured in this process."""
    import keras
    import numpy as np

    import amaml_tf as amaml
    from amaml_tf.functional.execution import compile_quickly

    compile_quickly()
    keras.utils.set_random_seed(0)
    family = amaml.tasks.REGISTRY["alpine"](num_support=_NUM_EXAMPLES, num_query=_NUM_EXAMPLES)
    model = amaml.models.multilayer_perceptron(
        family.input_shape, family.num_outputs, hidden_units=(_WIDTH.value,) * 2
    )
    episodes = next(iter(family.episodes("test", batch_size=_NUM_TASKS, num_batches=1)))
    learner = amaml.MetaLearner(model, CASES[name](amaml))
    learner.compile("sgd", loss=family.loss)
    before = resident()
    memory = PeakMemory()
    first = seconds_of(lambda: learner.meta_gradients(episodes))
    start = time.perf_counter()
    done = learner.meta_gradients(episodes).diagnostics
    forward = done.forward
    seconds = time.perf_counter() - start
    peak = memory.stop()
    return {
        "name": name,
        "parameters": model.count_params(),
        "state_mib": _NUM_TASKS * model.count_params() * 4 / 2**20,
        "before_mib": before,
        "peak_mib": peak,
        "gradients": gradients_of(done),
        "max_stages": int(np.max(forward.max_stages)),
        "spectral_radius": float(np.max(forward.spectral_radius)),
        "status": int(np.min(forward.status)),
        "first_call_seconds": first,
        "seconds": seconds,
    }


def main(_: list[str]) -> None:
    """Measures one case, or each in a process of its own; prints a table and writes it."""
    if _RUN.value:
        print(json.dumps(measure(_RUN.value)))
        return
    rows = []
    print(f"{'MiB':16}{'before':>8}{'peak':>8}{'states':>8}{'gradients':>11}{'s':>8}")
    for name in _CASES.value:
        row = apart("memory", f"--run={name}", f"--width={_WIDTH.value}")
        if row is None:
            continue
        rows.append(row)
        states = (row["peak_mib"] - row["before_mib"]) / row["state_mib"]
        print(
            f"{name:16}{row['before_mib']:8.0f}{row['peak_mib']:8.0f}{states:8.1f}"
            f"{row['gradients']:11d}{row['seconds']:8.1f}",
            flush=True,
        )
    write("memory", rows, _OUTPUT.value)


if __name__ == "__main__":
    app.run(main)
