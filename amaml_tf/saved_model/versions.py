"""The numbered versions of an export, as model servers expect them."""

from __future__ import annotations

from pathlib import Path

from amaml_tf.aliases import PathLike
from amaml_tf.errors import ExportNotFoundError, UsageError

SAVED_MODEL = "saved_model.pb"
KERAS_MODEL = Path("assets.extra", "initialization.keras")


def find_version(directory: PathLike) -> Path:
    """Returns the folder of the highest version in `directory`, or `directory` if it is a version.

    Raises:
        ExportNotFoundError: if there is none.
    """
    root = Path(directory)
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


def _versions(root: Path) -> list[int]:
    names = [path.name for path in root.iterdir()] if root.is_dir() else []
    return [int(name) for name in names if name.isdecimal() and str(int(name)) == name]


def new_version(root: Path, version: int | None) -> int:
    """Returns the number of the version to write: `version`, or one above the highest.

    Raises:
        UsageError: `version` exists already, or is below 1.
    """
    if version is None:
        return max(_versions(root), default=0) + 1
    if version < 1:
        raise UsageError(
            f"Expected version to be a whole number from 1 on, got {version}; leave it out to "
            "write the next one."
        )
    if (root / str(version)).exists():
        raise UsageError(
            f"Expected a version that is not there yet, got {version}, which is in {root}; remove "
            "it, or leave the version out to write the next one."
        )
    return version
