"""What follows if a file of a run cannot be written."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator

import tensorflow as tf

from amaml_tf.aliases import PathLike
from amaml_tf.errors import SaveError, UsageError
from amaml_tf.training.telling import tell

ON_SAVE_FAILURE = ("stop", "warn")


class Saving:
    """Guards what writes files: a failure stops the run, or is told and the run goes on.

    Args:
        on_failure: "stop" or "warn".

    Raises:
        UsageError: it is neither.
    """

    def __init__(self, on_failure: str) -> None:
        if on_failure not in ON_SAVE_FAILURE:
            raise UsageError(
                f"Expected on_save_failure to be one of {', '.join(ON_SAVE_FAILURE)}, got "
                f"{on_failure!r}; use one of them."
            )
        self._stops = on_failure == "stop"

    @contextlib.contextmanager
    def of(self, path: PathLike) -> Iterator[None]:
        """Guards the writing of one file.

        Raises:
            SaveError: it cannot be written, and that stops the run.
        """
        try:
            yield
        except SaveError as error:
            self._fail(error)
        except (OSError, tf.errors.OpError) as error:
            self._fail(SaveError(_sentence(path, error)))

    def require_room(self, folder: PathLike, size: int) -> None:
        """Fails unless there is room for two checkpoints of `size` bytes, the old and the new."""
        free = shutil.disk_usage(folder).free
        if free < 2 * size + 2**20:
            self._fail(
                SaveError(
                    f"Expected room for two checkpoints of {size / 1e6:.1f} MB in {folder}, got "
                    f"{free / 1e6:.1f} MB; make room there, or pass another --workdir."
                )
            )

    def _fail(self, error: SaveError) -> None:
        if self._stops:
            raise error
        tell(f"{error} (--on_save_failure=warn: the run goes on and tries again.)")


def _sentence(path: PathLike, error: OSError | tf.errors.OpError) -> str:
    reason = getattr(error, "strerror", None) or str(getattr(error, "message", error))
    return (
        f"Expected to be able to write {path}, got: {reason}; make room there or let this user "
        "write there, and run the same command again to go on from the newest checkpoint."
    )
