"""The run that `soak.py` disturbs, and what is there at its end: weights, logs and evaluation."""

from __future__ import annotations

import csv
import hashlib
import json
import pathlib
import random
import signal
from typing import Any

import forking

from amaml_tf.commands import train
from amaml_tf.training import LOG_FILE, TENSORBOARD_FOLDER, VALIDATION_FILE
from amaml_tf.training.checkpoint_files import CheckpointFolder

FLAGS = (
    "--num_support=3",
    "--num_query=3",
    "--hidden_units=2",
    "--algorithm=reptile",  # compiled in the least time
    "--step_size=0.1",
    "--num_steps=1",
    "--meta_batch_size=2",
    "--num_meta_steps=30",
    "--log_every=1",  # a row that a stop cuts in two would differ, as is documented
    "--checkpoint_every=3",
    "--num_eval_episodes=4",
    "--eval_batch_size=4",
    "--vectorize=off",
    "--jit_compile=off",
)

_MAY_DIFFER = ("settings", "on_save_failure", "vectorize", "jit_compile")


class Runs:
    """Runs in folders of their own, each to be disturbed and then compared with a quiet one."""

    def __init__(self, folder: pathlib.Path) -> None:
        self.folder = folder
        self._number = 0
        self.quiet = self.new()
        ended = self.started(self.quiet).end()
        if ended.status != 0:
            raise RuntimeError(f"The run that nothing disturbs failed: {ended.output}")
        #: Seconds of the processor that a run takes.
        self.seconds = ended.seconds
        self._expected = state(self.quiet)

    def new(self) -> pathlib.Path:
        """Returns the folder of a new run."""
        self._number += 1
        return self.folder / f"run-{self._number}"

    def started(self, workdir: pathlib.Path, *flags: str, **options: Any) -> forking.Process:
        """Starts the run in `workdir`, or goes on with it."""
        output = self.folder / "output"
        return forking.started(
            train, *FLAGS, f"--workdir={workdir}", *flags, output=output, **options
        )

    def at_a_moment(
        self, workdir: pathlib.Path, rng: random.Random, *flags: str, **options: Any
    ) -> forking.Process:
        """Starts the run in `workdir`, and returns at a random moment of it."""
        process = self.started(workdir, *flags, **options)
        process.wait_for_begin()
        process.wait_for_work(rng.uniform(0, self.seconds))
        return process

    def stopped(
        self,
        workdir: pathlib.Path,
        rng: random.Random,
        *flags: str,
        by: signal.Signals = signal.SIGKILL,
        **options: Any,
    ) -> forking.Ended:
        """Starts the run in `workdir`, and stops it by a signal at a random moment."""
        process = self.at_a_moment(workdir, rng, *flags, **options)
        process.send(by)
        return process.end()

    def end(self, workdir: pathlib.Path) -> str:
        """Lets a run come to its end in quiet; returns "same", or what is wrong."""
        ended = self.started(workdir).end()
        if ended.status != 0:
            return f"cannot go on: {last_words(ended)}"
        return self.compared(workdir)

    def compared(self, workdir: pathlib.Path) -> str:
        """Returns "same" if a finished run is like the quiet one, or what differs."""
        found = state(workdir)
        differing = [name for name in self._expected | found if not self._has(found, name)]
        return "same" if not differing else f"differs in {', '.join(differing)}"

    def _has(self, found: dict[str, Any], name: str) -> bool:
        return name in found and name in self._expected and found[name] == self._expected[name]


def state(workdir: pathlib.Path) -> dict[str, Any]:
    """Returns what is there at the end of a run: rows without seconds, hashes of data.

    TensorBoard's files are left out, and so are older checkpoints, because a stop saves one more.
    """
    found: dict[str, Any] = {}
    older = {f"meta_step-{step}" for step in CheckpointFolder(workdir).steps()[:-1]}
    for path in sorted(workdir.rglob("*")):
        name = str(path.relative_to(workdir))
        is_older = path.stem in older or path.name == "checkpoint"
        if path.is_dir() or TENSORBOARD_FOLDER in path.parts or is_older:
            continue
        if path.name in (LOG_FILE, VALIDATION_FILE):
            with path.open(newline="") as file:
                found[name] = [row | {"seconds": ""} for row in csv.DictReader(file)]
        elif path.suffix == ".json":
            # What may differ between two calls of the same run.
            found[name] = json.loads(path.read_text()) | dict.fromkeys(_MAY_DIFFER)
        else:
            found[name] = hashlib.sha256(path.read_bytes()).hexdigest()
    return found


def last_words(ended: forking.Ended) -> str:
    """Returns the status and the last line of a process, for a table."""
    lines = [line.strip() for line in ended.output.splitlines() if line.strip()]
    return f"status {ended.status}: {lines[-1][:200] if lines else 'no output'}"


def traceback_in(ended: forking.Ended) -> str:
    """Returns the traceback in the output of a process, on one line; "" if there is none."""
    before, begin, rest = ended.output.partition("Traceback (most recent call last)")
    what = before.strip().rpartition("\n")[2]  # such as "Exception ignored in"
    return " / ".join([what, *map(str.strip, rest.splitlines())]) if begin else ""
