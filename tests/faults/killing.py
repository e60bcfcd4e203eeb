"""Kills at the operations on files: Python's are counted, and one of them never happens."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from typing import Any

EVENTS = ("open", "os.mkdir", "os.remove", "os.rename", "os.rmdir", "os.truncate")


class Killed(BaseException):
    """From here on the process does nothing to files any more."""


class Killer:
    """Counts the operations on files of a folder, and kills before one of them.

    After the kill all operations fail: what a dead process would not do, `finally` does not either.
    """

    def __init__(self) -> None:
        self._folder = ""
        self._left = -1  # operations until the kill
        self._is_dead = False
        sys.addaudithook(self._before)

    def kills(self, run: Callable[[], object], folder: object, number: int) -> bool:
        """Kills `run` before an operation; returns whether there was one of that number."""
        self._folder, self._left, self._is_dead = str(folder), number, False
        try:
            run()
        except Killed:
            return True
        finally:
            self._left = -1
        return False

    def _before(self, event: str, arguments: tuple[Any, ...]) -> None:
        if self._left < 0 or event not in EVENTS or not self._folder:
            return
        if event == "open" and not _writes(arguments):
            return
        # `shutil.rmtree` names files by their folder's descriptor, without the folder's name.
        is_ours = str(arguments[0]).startswith(self._folder)
        if is_ours or (self._is_dead and event != "open"):
            if self._left == 0:
                self._is_dead = True
                raise Killed
            self._left -= 1


def _writes(arguments: tuple[Any, ...]) -> bool:
    _, mode, flags = arguments
    return bool(flags & 3) if isinstance(flags, int) else any(each in mode for each in "wa+x")


#: The only one of a process: a hook cannot be removed.
KILLER = Killer()


def numbers(every: int) -> Iterator[int]:
    """Yields 0, `every`, 2 `every` and so on."""
    number = 0
    while True:
        yield number
        number += every
