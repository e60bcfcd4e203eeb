"""The numbered versions of an export, as model servers expect them, safe among several exporters.

A version is written in a hidden folder, which servers ignore, and renamed when it is whole. Its
exporter holds a lock on that folder: a hidden folder without one is what a killed exporter left.
Numbers are given out under a lock on the folder of the versions.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import shutil
import uuid
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from amaml_tf.aliases import PathLike
from amaml_tf.errors import ExportNotFoundError, UsageError

SAVED_MODEL = "saved_model.pb"
EXTRA = Path("assets.extra")
KERAS_MODEL = EXTRA / "initialization.keras"

_UNFINISHED = ".unfinished-"
_LARGEST = 2**63 - 1  # model servers count in int64


def local_folder(directory: PathLike) -> Path:
    """Returns `directory` as a path.

    Raises:
        UsageError: it is on a remote file system, which has no renaming of folders.
    """
    if re.match(r"[A-Za-z][A-Za-z0-9+.-]+:/", os.fspath(directory)):
        raise UsageError(
            f"Expected a folder of this machine for an export, got {os.fspath(directory)}; export "
            "to a folder here and copy the whole version, for example with `gcloud storage cp -r`."
        )
    return Path(directory).expanduser()


def find_version(directory: PathLike) -> Path:
    """Returns the folder of the highest version in `directory`, or `directory` if it is a version.

    Raises:
        ExportNotFoundError: if there is none.
        UsageError: the folder is on a remote file system.
    """
    root = local_folder(directory)
    if (root / SAVED_MODEL).exists():
        return root
    exported = [n for n in _versions(root) if (root / str(n) / SAVED_MODEL).exists()]
    if not exported:
        found = "a folder without one" if root.is_dir() else "no such folder"
        raise ExportNotFoundError(
            f"Expected an exported initialization in {root}, got {found}; write one with "
            "save_initialization or amaml-export."
        )
    return root / str(max(exported))


def require_free(root: Path, version: int | None) -> None:
    """Raises UsageError if `version` exists already, or is no version; None is always free."""
    if version is None:
        return
    if not is_count(version) or version > _LARGEST:
        raise UsageError(
            f"Expected version to be a whole number from 1 on, got {version!r}; leave it out to "
            "write the next one."
        )
    if (root / str(version)).exists():
        raise UsageError(
            f"Expected a version that is not there yet, got {version}, which is in {root}; remove "
            "it, or leave the version out to write the next one."
        )


@contextlib.contextmanager
def unfinished(root: Path) -> Iterator[Path]:
    """Yields a new hidden folder in `root` to write a version in; removes what is left of it.

    What killed exporters left is removed first.
    """
    root.mkdir(parents=True, exist_ok=True)
    folder = root / f"{_UNFINISHED}{uuid.uuid4().hex}"
    with _locked(root):
        for path in root.glob(".*unfinished*"):
            _remove_if_abandoned(path)
        folder.mkdir()
        own = _lock(folder)
    try:
        yield folder
    finally:
        try:
            shutil.rmtree(folder, ignore_errors=True)
        finally:
            os.close(own)  # else a second interruption would keep the lock


def publish(folder: Path, root: Path, version: int | None) -> Path:
    """Makes a hidden folder the version `version`, or that after the highest; returns its path.

    Raises:
        UsageError: somebody else has written `version` meanwhile.
    """
    with _locked(root):
        number = max(_versions(root), default=0) + 1 if version is None else version
        require_free(root, number)
        return folder.rename(root / str(number))


def is_count(value: object) -> bool:
    """Returns whether `value` is a whole number from 1 on."""
    return isinstance(value, (int, np.integer)) and not isinstance(value, bool) and bool(value >= 1)


def keep_newest(root: Path, count: int, written: Path) -> None:
    """Removes all but the `count` highest versions, and `written`."""
    with _locked(root):
        for number in sorted(_versions(root), reverse=True)[count:]:
            path = root / str(number)
            if path != written:
                # Hidden first: a server must not see half a version.
                shutil.rmtree(path.rename(root / f"{_UNFINISHED}{uuid.uuid4().hex}"))


def _versions(root: Path) -> list[int]:
    names = [path.name for path in root.iterdir()] if root.is_dir() else []
    return [int(name) for name in names if name.isdecimal() and str(int(name)) == name]


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    handle = _lock(folder)
    try:
        yield
    finally:
        os.close(handle)


def _lock(folder: Path, wait: bool = True) -> int:
    """Locks a folder, until the handle that is returned is closed or the process ends."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(handle)
        raise
    return handle


def _remove_if_abandoned(folder: Path) -> None:
    try:
        handle = _lock(folder, wait=False)
    except OSError:
        return  # somebody writes there, or has just finished
    shutil.rmtree(folder, ignore_errors=True)
    os.close(handle)
