"""Writes files atomically: a file is complete or unchanged."""

from __future__ import annotations

import os
import pathlib
import tempfile


def write_atomically(path: str | os.PathLike[str], text: str) -> None:
    """Writes `text` to `path`; a reader finds either the old text or the new text at any time.

    Args:
        path: the file; its folder must exist.
        text: written as UTF-8.
    """
    path = pathlib.Path(path)
    # In the same folder, because a rename is atomic only within one file system.
    handle, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with open(handle, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)  # mkstemp gives 0o600
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise
