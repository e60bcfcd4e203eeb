"""Tests in forks of a process that has imported TensorFlow, and which of them executes a line."""

from __future__ import annotations

import contextlib
import os
import pathlib
import pickle
import resource
import signal
import tempfile
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence

import coverage
import keras  # noqa: F401 - imported before the forks
import pytest
import tensorflow  # noqa: F401 - likewise
import tensorflow_probability  # noqa: F401 - likewise

_ARGUMENTS = ("-x", "-q", "-p", "no:cacheprovider", "-n0", "-m", "not long")


class Covered:
    """The tests in some folders, and what they execute of some files.

    Args:
        tests: folders and files of tests.
        paths: the files.

    Raises:
        RuntimeError: a test fails.
    """

    def __init__(self, tests: Sequence[str], paths: Collection[pathlib.Path]) -> None:
        with tempfile.TemporaryDirectory() as folder:
            seconds, data = pathlib.Path(folder, "seconds"), pathlib.Path(folder, "lines")
            if _status(lambda: _measure(tests, paths, seconds, data), 7200):
                raise RuntimeError("Expected tests that pass, got a failure without any mutant.")
            #: Seconds of the processor that each test takes.
            self.seconds: dict[str, float] = pickle.loads(seconds.read_bytes())
            measured = coverage.CoverageData(str(data))
            measured.read()
            self._tests = {path: measured.contexts_by_lineno(str(path)) for path in paths}

    def by(self, path: pathlib.Path, lines: Iterable[int]) -> dict[str, float]:
        """Returns the seconds of the tests that execute one of the lines.

        What is executed when the file is imported concerns all tests: one may read a constant.
        """
        of_file = self._tests[path]
        found = {test for line in lines for test in of_file.get(line, ())}
        if "" in found:
            found = set(self.seconds)
        return {test: self.seconds[test] for test in found}


def covered(tests: Sequence[str], paths: Collection[pathlib.Path], kept: str | None) -> Covered:
    """Returns what tests execute, from a file that keeps it, if there is one."""
    path = pathlib.Path(kept or "")
    if path.is_file():
        return pickle.loads(path.read_bytes())
    found = Covered(tests, paths)
    if kept:
        path.write_bytes(pickle.dumps(found))
    return found


def passes(tests: dict[str, float], seconds: float, first: Callable[[], object]) -> bool:
    """Returns whether tests pass, the quickest first, in at most so many seconds of the processor.

    Args:
        tests: their names, with the seconds that they take.
        seconds: the most that they may take together. (Seconds on the clock say little where
            other programs are at work; a test that waits for ever is ended after ten times more.)
        first: what the fork does before it imports the package.
    """

    def run() -> int:
        first()
        resource.setrlimit(resource.RLIMIT_CPU, (int(seconds), int(seconds)))
        files = dict.fromkeys(name.partition("::")[0] for name in tests)
        return int(pytest.main([*_ARGUMENTS, *files], plugins=[_Only(tests)]))

    return not tests or _status(run, 10 * seconds) == 0


class _Only:
    """Runs the tests that are given, the quickest first."""

    def __init__(self, tests: dict[str, float]) -> None:
        self._tests = tests

    @pytest.hookimpl(trylast=True)
    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        items[:] = sorted(
            (item for item in items if item.nodeid in self._tests),
            key=lambda item: self._tests[item.nodeid],
        )


class _Measuring:
    """Notes which lines each test executes, and its seconds."""

    def __init__(self, measuring: coverage.Coverage) -> None:
        self._coverage = measuring
        self.seconds: dict[str, float] = {}

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Iterator[None]:
        start = time.process_time()
        self._coverage.switch_context(item.nodeid)
        result = yield
        self._coverage.switch_context("")
        self.seconds[item.nodeid] = time.process_time() - start
        return result


def _measure(
    tests: Sequence[str],
    paths: Collection[pathlib.Path],
    seconds: pathlib.Path,
    data: pathlib.Path,
) -> int:
    measuring = coverage.Coverage(
        str(data), include=[str(path) for path in paths], config_file=False
    )
    measuring.start()
    plugin = _Measuring(measuring)
    status = pytest.main([*_ARGUMENTS, *tests], plugins=[plugin])
    measuring.stop()
    measuring.save()
    seconds.write_bytes(pickle.dumps(plugin.seconds))
    return int(status)


def _status(run: Callable[[], int], seconds: float) -> int:
    """Returns the exit status of a function in a fork, which is killed after some seconds."""
    child = os.fork()
    if child == 0:
        with open(os.devnull, "w") as nothing, contextlib.redirect_stdout(nothing):
            os.dup2(nothing.fileno(), 2)
            try:
                status = run()
            except BaseException:  # noqa: BLE001 - whatever it is, this fork must not go on
                status = 70
            os._exit(status)
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.1)
    os.kill(child, signal.SIGKILL)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
