"""Disturbs runs for a long time, and prints a table: `python tests/faults/soak.py --help`.

Each row counts how the attempts of one kind ended. An end that was not promised is an error, and
the exit status is then 1. What is promised is in docs/reliability.md.
"""

from __future__ import annotations

import argparse
import collections
import functools
import os
import pathlib
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # imported only after the library is interposed
    from soaked_runs import Runs

#: Ends that were promised begin with one of these.
GOOD = ("same", "kept", "told", "skipped", "within")

_SOURCE = pathlib.Path(__file__).with_name("interpose.c")
_LIBRARY = "AMAML_INTERPOSED"


def kinds(
    sizes: argparse.Namespace, runs: Callable[[], Runs]
) -> Iterator[tuple[str, int, Callable[[int], Iterator[str]]]]:
    """Yields what is disturbed: its name, its size and what yields the ends of the attempts."""
    import soaks

    rng = random.Random(sizes.seed)
    yield "kills at random moments", sizes.kills, lambda n: soaks.kills(runs(), n, rng)
    yield "signals at random moments", sizes.signals, lambda n: soaks.signals(runs(), n, rng)
    yield "damaged checkpoints", sizes.damages, lambda n: soaks.damages(runs(), n, rng)
    yield "full disks", sizes.disks, lambda n: soaks.disks(runs(), n, rng)
    yield "limits of memory", sizes.memory, lambda n: soaks.memory(runs(), n, rng)
    yield "clocks that jump", sizes.clocks, lambda n: soaks.clocks(runs(), n, rng)
    yield "deterministic runs", sizes.deterministic, lambda n: soaks.deterministic(runs(), n, rng)
    for name in ("train", "evaluate", "export"):
        what = f"kills before each file operation of amaml-{name}"
        yield what, sizes.operations, functools.partial(_operations, runs, name)
    yield "memory over meta-steps", sizes.steps, lambda n: soaks.steps(runs().folder, n)


def _operations(runs: Callable[[], Runs], name: str, every: int) -> Iterator[str]:
    import soaks

    return soaks.operations(runs(), every, name)


def main() -> int:
    """Prints the table; returns the exit status."""
    sizes = _sizes()
    if not os.environ.get(_LIBRARY):
        return _with_library()
    import fuzzing
    from soaked_runs import Runs

    bad: list[str] = []
    with tempfile.TemporaryDirectory() as folder:
        made: list[Runs] = []

        def runs() -> Runs:
            if not made:
                made.append(Runs(pathlib.Path(folder).resolve()))
            return made[0]

        print("| what | attempts | ends | time | memory |\n|---|---|---|---|---|", flush=True)
        for what, size, disturb in kinds(sizes, runs):
            if size:
                start = time.monotonic()
                counts: collections.Counter[str] = collections.Counter(disturb(size))
                fuzzing.report(what, counts, time.monotonic() - start)
                sys.stdout.flush()
                bad += [f"{what}: {end}" for end in counts if not end.startswith(GOOD)]
    print("\n".join(f"NOT AS PROMISED: {each}" for each in bad))
    return int(bool(bad))


def _sizes() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=0)
    for name, default, what in (
        ("kills", 50, "runs that are killed (SIGKILL) one to three times"),
        ("signals", 200, "SIGTERM, SIGHUP and SIGINT"),
        ("damages", 500, "damaged checkpoints"),
        ("disks", 20, "disks that fill up (a tmpfs, which needs root)"),
        ("memory", 20, "runs in little memory"),
        ("clocks", 10, "runs whose clock jumps"),
        ("deterministic", 10, "runs with --deterministic, executed in several ways"),
        ("operations", 1, "distance of the kills before file operations, 1 for all"),
        ("steps", 100_000, "meta-steps of a run whose memory is measured"),
    ):
        parser.add_argument(f"--{name}", type=int, default=default, help=f"{what} ({default})")
    parser.add_argument("--none", action="store_true", help="0 for what is not given")
    given = parser.parse_args()
    if given.none:
        none = {n: 0 for n in vars(given) if f"--{n}" not in " ".join(sys.argv)}
        vars(given).update(none)
    return given


def _with_library() -> int:
    """Runs this program again, with the library that kills and lets the clock jump before it."""
    with tempfile.TemporaryDirectory() as folder:
        library = f"{folder}/interpose.so"
        compiled = ["cc", "-shared", "-fPIC", "-O1", "-o", library, str(_SOURCE), "-ldl"]
        subprocess.run(compiled, check=True)
        environment = {**os.environ, "LD_PRELOAD": library, _LIBRARY: library}
        return subprocess.call([sys.executable, *sys.argv], env=environment)


if __name__ == "__main__":
    sys.exit(main())
