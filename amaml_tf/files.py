"""Writes files atomically: a file is complete or unchanged."""

from __future__ import annotations

import contextlib
import fcntl
import os
import pathlib
import re
import secrets

from amaml_tf.aliases import PathLike


def write_atomically(path: PathLike, content: str | bytes) -> None:
    """Writes `content` to `path`; a reader finds either the old one or the new one at any time.

    The content is on the disk when the call returns. The file has the mode that the process's umask
    gives. What a killed writer of the same file left behind is removed.

    Args:
        path: the file; its folder must exist.
        content: bytes, or text, which is written as UTF-8.

    Raises:
        OSError: the file cannot be written; it is then unchanged.
    """
    path = pathlib.Path(path)
    sweep(path)
    # In the same folder, because a rename is atomic only within one file system.
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    handle = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
    try:
        with open(handle, "wb") as file:
            _lock(handle)
            file.write(content.encode() if isinstance(content, str) else content)
            file.flush()
            os.fsync(handle)
            os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    flush_folder(path.parent)


def sweep(path: PathLike) -> None:
    """Removes what killed writers of the file `path` left beside it, but no writer's at work."""
    path = pathlib.Path(path)
    # Names of eight letters and digits are also what earlier versions gave.
    name = re.compile(rf"\.{re.escape(path.name)}\.[a-z0-9_]{{8}}")
    for leftover in list(path.parent.iterdir()):
        if name.fullmatch(leftover.name):
            with contextlib.suppress(OSError), leftover.open("rb") as file:
                if _lock(file.fileno()):  # a writer at work holds this lock
                    leftover.unlink()


def flush_folder(folder: PathLike) -> None:
    """Flushes the names in a folder to the disk, so that a rename survives a power cut."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):  # some network file systems cannot
            os.fsync(handle)
    finally:
        os.close(handle)


def flush_file(path: PathLike) -> None:
    """Flushes what was written to a file to the disk.

    Raises:
        OSError: it does not fit there.
    """
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _lock(handle: int) -> bool:
    """Locks an open file as long as it is open; returns whether nobody else has."""
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # a file system without locks
        return True
    return True
