"""Signals that stop a program: it finishes its meta-step, saves, and says how to go on."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

from amaml_tf.errors import TOLD
from amaml_tf.training.telling import tell

#: Ctrl-C; the end of a job, a container or a machine; the end of a terminal.
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
#: Seconds that a program has to end. Schedulers kill after 30.
STOP_WITHIN = 25.0


class Stopped(KeyboardInterrupt):
    """A signal stopped the program, or an interruption of Python's.

    Args:
        text: what was reached, and how to go on.
        number: of the signal.
    """

    def __init__(self, text: str = "", number: int = signal.SIGINT) -> None:
        super().__init__(text)
        self.number = number

    @property
    def status(self) -> int:
        """The exit status that a shell expects: 130, 143 or 129."""
        return 128 + self.number


class _Watch:
    """Waits for signals in the main thread, and in a thread of its own.

    Python runs handlers only between steps of Python code, and a meta-step or a compilation is one
    such step. The thread sees a signal at once.
    """

    def __init__(self, name: str, seconds: float) -> None:
        self.arrived: int | None = None
        self.is_held = False
        self.has_raised = False
        self._name = name
        self._seconds = seconds
        self._timer: threading.Timer | None = None
        self._before = {
            number: signal.signal(number, self._handle)
            for number in SIGNALS
            if signal.getsignal(number) is not signal.SIG_IGN  # as nohup wants it
        }
        # C++ code that loses `Stopped` may print it by these.
        self._hooks = sys.excepthook, sys.unraisablehook
        sys.excepthook = self._unless_raised(sys.excepthook)
        sys.unraisablehook = self._unless_raised(sys.unraisablehook)
        self._reading, self._writing = os.pipe()
        os.set_blocking(self._writing, False)
        self._fd_before = signal.set_wakeup_fd(self._writing, warn_on_full_buffer=False)
        self._thread = threading.Thread(target=self._listen, daemon=True)
        self._thread.start()

    def renew(self) -> None:
        for number in self._before:
            signal.signal(number, self._handle)

    def close(self) -> None:
        signal.set_wakeup_fd(self._fd_before)
        for number, handler in self._before.items():
            signal.signal(number, handler)
        sys.excepthook, sys.unraisablehook = self._hooks
        os.write(self._writing, b"\0")  # ends the thread, after the signals that came
        self._thread.join()
        os.close(self._writing)
        if self._timer is not None:
            self._timer.cancel()

    def _handle(self, number: int, _: FrameType | None) -> None:
        self.arrived = number
        if not self.is_held:
            self.has_raised = True
            raise Stopped(number=number)

    def _unless_raised(self, hook: Callable[..., object]) -> Callable[..., None]:
        def called(*arguments: Any) -> None:
            if not self.has_raised:
                hook(*arguments)

        return called

    def _listen(self) -> None:
        with open(self._reading, "rb", buffering=0) as signals:
            while number := signals.read(1)[0]:
                if number in self._before:
                    self._see(number)

    def _see(self, number: int) -> None:
        if self._timer is not None:
            self._end(number)
        name = signal.Signals(number).name
        tell(
            f"{self._name}: {name}: ends in at most {self._seconds:g} s. A second one ends it now."
        )
        self._timer = threading.Timer(self._seconds, self._end, [number])
        self._timer.daemon = True
        self._timer.start()

    def _end(self, number: int) -> None:
        tell(
            f"{self._name}: Stopped by {signal.Signals(number).name} without saving; run the same "
            "command again to go on from the newest checkpoint."
        )
        os._exit(128 + number)


_watch: _Watch | None = None


@contextlib.contextmanager
def caught(name: str = "amaml", seconds: float = STOP_WITHIN) -> Iterator[None]:
    """Catches SIGINT, SIGTERM and SIGHUP inside the context, where they raise `Stopped`.

    Between `hold` and `release` they wait. A second signal, or `seconds` after the first, ends the
    process. Inside another such context, and outside of the main thread, this changes nothing.

    Where TensorFlow's C++ code calls Python, `Stopped` can be lost. What is computed then can be
    wrong: see `raise_if_lost`.

    Args:
        name: of the program, for what is printed.
        seconds: how long after the first signal the process ends in any case.
    """
    global _watch
    if _watch is not None or threading.current_thread() is not threading.main_thread():
        yield
        return
    _watch = watch = _Watch(name, seconds)
    try:
        yield
        raise_if_lost()
    except Exception as error:
        # Another error can be what is left of `Stopped`, even one that tells of a mistake.
        if watch.arrived is None or (isinstance(error, TOLD) and not watch.has_raised):
            raise
        raise Stopped(number=watch.arrived) from error
    finally:
        _watch = None
        watch.close()


def renew() -> None:
    """Takes the signals back from libraries that have begun to catch them.

    TensorFlow's coordination of several processes takes SIGTERM, and does nothing with it.
    """
    if _watch is not None:
        _watch.renew()


def hold() -> None:
    """Lets signals wait until `release`, or until `arrived` is asked."""
    if _watch is not None:
        _watch.is_held = True


def release() -> None:
    """Ends `hold`."""
    if _watch is not None:
        _watch.is_held = False


def received() -> None:
    """Says that `Stopped` has come to where it is handled."""
    if _watch is not None:
        _watch.has_raised = False


def raise_if_lost() -> None:
    """Raises `Stopped` again if it was lost; call this before anything is written."""
    if _watch is not None and _watch.has_raised:
        raise Stopped(number=_watch.arrived or signal.SIGINT)


def arrived() -> int | None:
    """Returns the number of the signal that came, None if none did."""
    return None if _watch is None else _watch.arrived


def by_what(number: int | None) -> str:
    """Returns "Stopped by SIGTERM" or the like."""
    return "Stopped" if number is None else f"Stopped by {signal.Signals(number).name}"
