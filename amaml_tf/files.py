"""Files that are complete or unchanged, and folders that no kill leaves behind."""

from __future__ import annotations

import atexit
import contextlib
import fcntl
import os
import pathlib
import re
import secrets
import shutil
import tempfile

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


def own_folder(prefix: str) -> pathlib.Path:
    """Makes a temporary folder, which is removed when this process ends.

    What killed processes left behind is removed: a process at work holds a lock on its folder.

    Args:
        prefix: what the names of all such folders begin with.
    """
    for leftover in pathlib.Path(tempfile.gettempdir()).glob(f"{prefix}*"):
        with contextlib.suppress(OSError):  # of another user, or without locks
            if (handle := _held(leftover)) is not None:
                shutil.rmtree(leftover, ignore_errors=True)
                os.close(handle)
    while True:
        folder = pathlib.Path(tempfile.mkdtemp(prefix=prefix))
        try:
            is_ours = _held(folder) is not None  # as long as this process lives
        except FileNotFoundError:
            is_ours = False  # taken for a leftover just now
        except OSError:
            is_ours = True  # a file system without locks, where nothing is swept
        if is_ours and folder.is_dir():
            atexit.register(shutil.rmtree, folder, ignore_errors=True)
            return folder


def _held(folder: pathlib.Path) -> int | None:
    """Opens and locks a folder; returns what is open, None if another process has the lock."""
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(handle)
        if isinstance(error, BlockingIOError):
            return None
        raise
    return handle


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
