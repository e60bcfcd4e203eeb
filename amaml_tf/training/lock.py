"""The lock of a run's folder: one process trains there at a time."""

from __future__ import annotations

import contextlib
import datetime
import fcntl
import json
import os
import pathlib
import socket
import threading
from collections.abc import Iterator

from amaml_tf.aliases import PathLike
from amaml_tf.errors import UsageError
from amaml_tf.training.telling import tell

LOCK_FILE = ".lock"

# Folders that this process holds, and the threads that do.
_held: dict[pathlib.Path, int] = {}


@contextlib.contextmanager
def locked(workdir: PathLike) -> Iterator[None]:
    """Holds the lock of a folder, which is made if need be.

    The operating system gives the lock back when the process ends, however it ends. The thread that
    holds the lock may take it again.

    Raises:
        UsageError: another process or thread holds the lock, or the folder cannot be written to.
    """
    folder = pathlib.Path(os.path.realpath(workdir))  # unlike `resolve`, it bears loops of links
    if _held.get(folder) == threading.get_ident():
        yield
        return
    if folder in _held:
        raise _refusal(folder, "another thread of this process")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        handle = _open_and_lock(folder / LOCK_FILE)
    except OSError as error:
        raise UsageError(
            f"Expected workdir to be a folder that can be written to, got {workdir} "
            f"({error.strerror}); pass another."
        ) from error
    _held[folder] = threading.get_ident()
    try:
        yield
    finally:
        del _held[folder]
        try:
            (folder / LOCK_FILE).unlink(missing_ok=True)
        finally:
            os.close(handle)


def _open_and_lock(path: pathlib.Path) -> int:
    """Returns the open file, locked, with the name of this process in it."""
    while True:
        handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        try:
            _lock(handle, path)
            # Its holder may have removed the file between the two calls.
            if path.exists() and os.path.samestat(os.fstat(handle), path.stat()):
                os.truncate(handle, 0)
                os.write(handle, json.dumps(_oneself()).encode())
                return handle
        except BaseException:
            os.close(handle)
            raise
        os.close(handle)


def _lock(handle: int, path: pathlib.Path) -> None:
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise _refusal(path.parent, _holder(path)) from None
    except OSError as error:
        tell(
            f"The file system of {path.parent} has no locks ({error.strerror}): see to it that no "
            "other process trains there."
        )


def _oneself() -> dict[str, str | int]:
    now = datetime.datetime.now(datetime.timezone.utc)
    return {
        "host": socket.gethostname(),
        "process": os.getpid(),
        "since": now.strftime("%Y-%m-%d %H:%M:%S UTC"),
    }


def _holder(path: pathlib.Path) -> str:
    try:
        return "process {process} on {host}, since {since}".format(**json.loads(path.read_bytes()))
    except (OSError, ValueError, LookupError, RecursionError, TypeError):
        return "another process"  # which is about to write its name


def _refusal(folder: pathlib.Path, holder: str) -> UsageError:
    return UsageError(
        f"Expected no other run at work in {folder}, got {holder}; wait for it, stop it, or pass "
        "another workdir."
    )
