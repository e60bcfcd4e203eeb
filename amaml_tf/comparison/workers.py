"""Doing many runs, one after another in this process or in several worker processes."""

from __future__ import annotations

import _thread
import contextlib
import dataclasses
import json
import os
import pathlib
import queue
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any

from amaml_tf.comparison.runs import Run, execute, result_of
from amaml_tf.errors import UsageError, WorkerError
from amaml_tf.experiment import Experiment

LOG_FOLDER = "logs"
_PATIENCE = 20  # seconds for an interrupted worker to save its checkpoint

Report = Callable[[Run, dict[str, Any]], None]


class Here:
    """Does runs one after another in this process.

    Args:
        folder: folder of the comparison.
        kind: class of the experiments.
    """

    def __init__(self, folder: pathlib.Path, kind: type[Experiment] = Experiment) -> None:
        self._folder = folder
        self._kind = kind

    def do(self, runs: list[Run], report: Report) -> None:
        """Does `runs` and calls `report` after each; what a run prints goes to a log."""
        for run in runs:
            with _logged(self._folder):
                result = execute(run, self._folder, self._kind)
            report(run, result)


class Workers:
    """Does runs in processes that live as long as this object, each doing one run at a time.

    A worker gets a run as a line of JSON on its input and answers with a line on its output. It
    ends when its input ends, so no worker outlives this process.

    Args:
        folder: folder of the comparison.
        count: number of processes; they share the processor's cores equally.
    """

    def __init__(self, folder: pathlib.Path, count: int) -> None:
        self._folder = folder
        (folder / LOG_FOLDER).mkdir(parents=True, exist_ok=True)
        threads = max(1, (os.cpu_count() or 1) // count)
        self._processes = [self._start(number, threads) for number in range(count)]

    def do(self, runs: list[Run], report: Report) -> None:
        """Does `runs` and calls `report` when each of them ends.

        Raises:
            UsageError: a worker refused a run; the message is the worker's.
            WorkerError: a worker ended before its runs were done.
        """
        waiting: queue.Queue[Run] = queue.Queue()
        for run in runs:
            waiting.put(run)
        answers: queue.Queue[tuple[Run | None, str | None]] = queue.Queue()
        for process in self._processes:
            arguments = (process, waiting, answers)
            threading.Thread(target=_converse, args=arguments, daemon=True).start()
        for _ in runs:
            done, error = answers.get()
            if done is None:
                raise WorkerError(
                    "Expected all workers to keep running, but one ended (see "
                    f"{self._folder / LOG_FOLDER}); run the same command again to resume, with a "
                    "smaller --parallel if memory is short."
                )
            if error is not None:
                raise UsageError(error)
            result = result_of(done, self._folder)
            if result is not None:
                report(done, result)

    def close(self) -> None:
        """Ends the workers; those that are training save a checkpoint first."""
        for process in self._processes:
            with contextlib.suppress(OSError):
                process.stdin.close()  # type: ignore[union-attr]
        for process in self._processes:
            _await_end(process)

    def _start(self, number: int, threads: int) -> subprocess.Popen[str]:
        limits = {
            "TF_NUM_INTRAOP_THREADS": str(threads),
            "TF_NUM_INTEROP_THREADS": str(threads),
            "OMP_NUM_THREADS": str(threads),
        }
        with (self._folder / LOG_FOLDER / f"worker_{number}.log").open("a") as log:
            return subprocess.Popen(
                [*_this_program(), f"--worker={self._folder}"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                env=os.environ | limits,
            )


def _this_program() -> list[str]:
    """Returns the command that runs this program, without its arguments."""
    spec = sys.modules["__main__"].__spec__
    return [sys.executable, *(["-m", spec.name] if spec else sys.argv[:1])]


def _await_end(process: subprocess.Popen[str]) -> None:
    try:
        process.wait(_PATIENCE)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


@contextlib.contextmanager
def crew(
    folder: pathlib.Path, count: int, kind: type[Experiment] = Experiment
) -> Iterator[Here | Workers]:
    """Yields what does the runs: this process, or `count` workers until the context ends."""
    if count == 1:
        yield Here(folder, kind)
        return
    workers = Workers(folder, count)
    try:
        yield workers
    finally:
        workers.close()


def serve(folder: pathlib.Path, kind: type[Experiment] = Experiment) -> None:
    """Serves as a worker: does the runs on its input until there are no more."""
    answers, runs = sys.stdout, _read_runs()
    with contextlib.redirect_stdout(sys.stderr):
        while (run := runs.get()) is not None:
            error = None
            try:
                execute(run, folder, kind)
            except UsageError as refused:
                error = str(refused)
            except KeyboardInterrupt:
                return
            print(json.dumps({"error": error}), file=answers, flush=True)


def _read_runs() -> queue.Queue[Run | None]:
    """Reads runs in the background, and interrupts the current one when the input ends."""
    runs: queue.Queue[Run | None] = queue.Queue()

    def read() -> None:
        for line in sys.stdin:
            runs.put(Run(**json.loads(line)))
        runs.put(None)
        # Not SIGINT, which background jobs of a shell ignore.
        _thread.interrupt_main(signal.SIGTERM)

    threading.Thread(target=read, daemon=True).start()
    return runs


def _converse(
    process: subprocess.Popen[str],
    waiting: queue.Queue[Run],
    answers: queue.Queue[tuple[Run | None, str | None]],
) -> None:
    """Gives a worker one run after another; the answer (None, None) means that it ended."""
    while True:
        try:
            run = waiting.get_nowait()
        except queue.Empty:
            return
        try:
            print(json.dumps(dataclasses.asdict(run)), file=process.stdin, flush=True)
            answer = process.stdout.readline()  # type: ignore[union-attr]
        except (OSError, ValueError):
            answer = ""
        if not answer:
            answers.put((None, None))
            return
        answers.put((run, json.loads(answer)["error"]))


@contextlib.contextmanager
def _logged(folder: pathlib.Path) -> Iterator[None]:
    """Writes to a log what is printed inside the context."""
    (folder / LOG_FOLDER).mkdir(parents=True, exist_ok=True)
    path = folder / LOG_FOLDER / "log.txt"
    with path.open("a", encoding="utf-8") as log, contextlib.redirect_stdout(log):
        yield
