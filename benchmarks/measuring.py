"""Measuring time and memory, for all benchmarks in the same way."""

from __future__ import annotations

import json
import pathlib
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from amaml_tf.algorithms import MetaDiagnostics


class PeakMemory(threading.Thread):
    """Watches the resident memory of this process; `stop` returns its peak in MiB."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self._peak = resident()
        self._stopped = threading.Event()
        self.start()

    def run(self) -> None:
        while not self._stopped.wait(0.002):
            self._peak = max(self._peak, resident())

    def stop(self) -> float:
        self._stopped.set()
        self.join()
        return self._peak


def resident() -> float:
    """Returns the resident memory of this process in MiB."""
    import psutil

    return psutil.Process().memory_info().rss / 2**20


def gradients_of(diagnostics: MetaDiagnostics) -> int:
    """Returns the gradients of the slowest task of a meta-gradient, with those made again."""
    import numpy as np

    backward = diagnostics.backward
    again = 0 if backward is None else backward.num_evaluations
    return int(np.max(diagnostics.forward.num_evaluations + again))


def seconds_of(call: Callable[[], Any]) -> float:
    """Returns how long one call takes."""
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def in_turn(
    calls: Mapping[str, Callable[[], Any]], budget: float = 4.0, rounds: int = 40
) -> dict[str, float]:
    """Returns the median seconds of each call, after one call that compiles.

    The calls take turns, so that a slow phase of the machine slows all of them. They take up to
    `rounds` turns, fewer if these take more than `budget` seconds, but at least three.
    """
    for call in calls.values():
        call()
    found: dict[str, list[float]] = {name: [] for name in calls}
    start = time.perf_counter()
    for number in range(rounds):
        if number >= 3 and time.perf_counter() - start > budget:
            break
        for name, call in calls.items():
            found[name].append(seconds_of(call))
    return {name: statistics.median(seconds) for name, seconds in found.items()}


def apart(module: str, *arguments: str) -> dict[str, Any] | None:
    """Returns what a benchmark finds with `arguments` in a new process; None if it fails.

    The benchmark prints it as a line of JSON.
    """
    command = [sys.executable, "-m", f"benchmarks.{module}", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    lines = [line for line in done.stdout.splitlines() if line.startswith("{")]
    if not lines:
        print(f"{' '.join(arguments)}: {done.stderr.strip().splitlines()[-1:]}")
        return None
    return json.loads(lines[-1])


def write(name: str, rows: list[dict[str, Any]], folder: str) -> None:
    """Writes the results of a benchmark to `folder`, as JSON with their provenance."""
    from amaml_tf.files import write_atomically
    from amaml_tf.provenance import provenance

    path = pathlib.Path(folder) / f"{name}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    results = {"rows": rows, "provenance": provenance(f"python -m benchmarks.{name}")}
    write_atomically(path, json.dumps(results, indent=1))
    print(f"Written to {path}.")
