"""Commands in processes of their own, which begin at once: TensorFlow is imported before the fork.

The process that forks runs no operation of TensorFlow itself, so there are no threads to lose.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import os
import pathlib
import signal
import sys
import time
import traceback
from collections.abc import Callable
from types import ModuleType
from typing import NamedTuple

import psutil

from amaml_tf.commands import running
from amaml_tf.experiment import Experiment

_ON_STOP = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Ended(NamedTuple):
    """How a process ended: its status, or minus the number of the signal that killed it.

    `seconds` are those of the processor.
    """

    status: int
    output: str
    seconds: float


class Process:
    """Runs a function in a forked process; what it prints goes to a file.

    Args:
        run: gets a function to call when the work begins.
        output: the file.
    """

    def __init__(self, run: Callable[[Callable[[], None]], object], output: pathlib.Path) -> None:
        self._output = output
        self._begun, writing = os.pipe()
        sys.stdout.flush()
        self.number = os.fork()
        if self.number == 0:
            _run_and_exit(functools.partial(run, lambda: _tell(writing)), output)
        os.close(writing)

    def wait_for_begin(self) -> None:
        """Returns when the work has begun, or the process has ended."""
        os.read(self._begun, 1)

    def wait_for_work(self, seconds: float) -> None:
        """Returns when it has used so many seconds of the processor, or has ended.

        (Where other programs are at work, a run of a second can take a minute on the clock.)
        """
        process = psutil.Process(self.number)
        while self.is_alive():
            with contextlib.suppress(psutil.Error):
                times = process.cpu_times()
                if times.user + times.system >= seconds:
                    return
            time.sleep(0.01)

    def is_alive(self) -> bool:
        return os.waitid(os.P_PID, self.number, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None

    def send(self, number: int) -> None:
        os.kill(self.number, number)

    def end(self) -> Ended:
        """Waits for the end."""
        _, status, used = os.wait4(self.number, 0)
        os.close(self._begun)
        output = self._output.read_text(errors="replace")
        return Ended(os.waitstatus_to_exitcode(status), output, used.ru_utime + used.ru_stime)


def started(
    module: ModuleType,
    *arguments: object,
    output: pathlib.Path,
    first: Callable[[], object] = lambda: None,
) -> Process:
    """Starts a command: its module, and its flags.

    Args:
        module: of `amaml_tf.commands`.
        arguments: its flags.
        output: file for what it prints.
        first: what the process does before the command, such as to limit itself.
    """

    def run(begin: Callable[[], None]) -> None:
        @functools.wraps(module.main)
        def main(kind: type[Experiment]) -> None:
            begin()
            module.main(kind)

        sys.argv = [module.__name__, *map(str, arguments)]
        first()
        running.run(main)

    return Process(run, output)


def kill_before(folder: pathlib.Path, number: int) -> None:
    """Lets this process be killed before one of its operations on files of `folder`."""
    ctypes.CDLL(None).interpose_kill(os.fsencode(folder), ctypes.c_long(number))


def let_the_clock_jump(seed: int) -> None:
    """Lets the clock of this process jump by up to a month, again and again."""
    ctypes.CDLL(None).interpose_jumps(ctypes.c_long(seed))


def _tell(pipe: int) -> None:
    os.write(pipe, b"1")
    os.close(pipe)


def _run_and_exit(run: Callable[[], object], output: pathlib.Path) -> None:
    handle = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666)
    os.dup2(handle, 1)
    os.dup2(handle, 2)
    status = 0
    for number in _ON_STOP:  # what runs in the background may ignore them, and so do its children
        signal.signal(number, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        run()
    except SystemExit as error:
        if isinstance(error.code, str):
            print(error.code, file=sys.stderr)
        status = error.code if isinstance(error.code, int) else int(error.code is not None)
    except BaseException:  # noqa: BLE001 - its traceback is what is looked for
        traceback.print_exc()
        status = 70
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)
