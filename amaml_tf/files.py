"""Writing files that appear whole or not at all."""

from __future__ import annotations

import os
import pathlib
import tempfile


def write_atomically(path: str | os.PathLike[str], text: str) -> None:
    """Writes `text` to `path`, which holds the old text or the new one, whenever one looks.

    Args:
        path: the file; its folder exists.
        text: written as UTF-8.
    """
    path = pathlib.Path(path)
    # In the same folder, because a file can be renamed in one piece on one file system only.
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
