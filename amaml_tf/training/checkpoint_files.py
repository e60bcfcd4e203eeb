"""The checkpoints of a run as files, which appear whole and are flushed to the disk."""

from __future__ import annotations

import os
import pathlib
import re
import shutil
from collections.abc import Iterable

import numpy as np
import tensorflow as tf

from amaml_tf.aliases import PathLike
from amaml_tf.errors import UsageError
from amaml_tf.files import flush_file, flush_folder, sweep, write_atomically
from amaml_tf.user_files import require_readable_name

CHECKPOINT_FOLDER = "checkpoints"
_NAME = "meta_step"
_FILE = re.compile(rf"{_NAME}-(0|[1-9][0-9]*)\.(index|data-[0-9]+-of-[0-9]+)")
_DAMAGED = "damaged"
_UNFINISHED = ".unfinished"
#: The file in which TensorFlow looks for the newest checkpoint.
_STATE = "checkpoint"


class DamagedError(Exception):
    """A checkpoint cannot be read as it was written; the text says why."""


class CheckpointFolder:
    """The files `meta_step-N.index` and `meta_step-N.data-*` in `WORKDIR/checkpoints`.

    They have TensorFlow's format. (`tf.train.CheckpointManager` believes in its list of them,
    flushes nothing to the disk, and writes each file where it is read.)

    Args:
        workdir: folder of the run.

    Raises:
        UsageError: TensorFlow would find no files in a folder of this name.
    """

    def __init__(self, workdir: PathLike) -> None:
        require_readable_name(workdir, "a run")
        self.path = pathlib.Path(workdir) / CHECKPOINT_FOLDER

    def steps(self) -> list[int]:
        """Returns the meta-steps of which there is any file, in increasing order.

        Raises:
            UsageError: a file, or a link to what is not there, is in the place of the folder.
        """
        if not self.path.is_dir():
            if os.path.lexists(self.path):  # to begin anew would lose the run
                raise UsageError(
                    f"Expected {self.path} to be a folder of checkpoints, got a file or a link to "
                    "what is not there; put the folder back, wait until its disk is there again, "
                    "or pass another workdir."
                )
            return []
        return sorted(_steps_of(self.path.iterdir()))

    def is_used(self) -> bool:
        """Returns whether there is a checkpoint, or was a damaged one."""
        return bool(self.steps()) or (self.path / _DAMAGED).is_dir()

    def prefix(self, step: int) -> str:
        """Returns the path of a checkpoint without the ends of its files' names."""
        return str(self.path / f"{_NAME}-{step}")

    def read(self, step: int) -> dict[str, np.ndarray]:
        """Returns all arrays of a checkpoint by TensorFlow's names, with their checksums checked.

        Raises:
            DamagedError: the checkpoint is damaged.
            UsageError: the files cannot be opened.
        """
        return self._read(self.prefix(step))

    def write(self, step: int, checkpoint: tf.train.Checkpoint, expected: int | None) -> None:
        """Writes a checkpoint, which appears whole and is on the disk when the call returns.

        Args:
            step: number of its meta-step.
            checkpoint: what to write.
            expected: how many arrays to find when the checkpoint is read back; None: it is not.

        Raises:
            OSError, tf.errors.OpError: it could not be written; nothing is left of it.
            DamagedError: it was read back and is not what was written.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        unfinished = self.path / _UNFINISHED
        shutil.rmtree(unfinished, ignore_errors=True)
        unfinished.mkdir()
        try:
            prefix = str(unfinished / f"{_NAME}-{step}")
            checkpoint.write(prefix)
            if expected is not None and len(self._read(prefix)) < expected:
                raise DamagedError("arrays are missing in it")
            # The index comes last: without it there is no checkpoint.
            files = sorted(unfinished.iterdir(), key=lambda path: path.suffix == ".index")
            for path in files:
                flush_file(path)
            for path in files:
                path.replace(self.path / path.name)
        finally:
            if not pathlib.Path(f"{self.prefix(step)}.index").exists():
                self.remove(step)  # only the data came to its place
            shutil.rmtree(unfinished, ignore_errors=True)
        flush_folder(self.path)
        self._write_state()

    def set_aside(self, step: int) -> None:
        """Moves the files of a damaged checkpoint to a folder `damaged`."""
        damaged = self.path / _DAMAGED
        damaged.mkdir(exist_ok=True)
        for path in self._files(step):
            path.replace(damaged / path.name)

    def remove(self, step: int) -> None:
        """Removes a checkpoint, its index first: what is left after a kill is no checkpoint."""
        for path in sorted(self._files(step), key=lambda path: path.suffix != ".index"):
            path.unlink(missing_ok=True)

    def keep_only(self, steps: set[int]) -> None:
        """Removes all other checkpoints."""
        others = set(self.steps()) - steps
        for step in sorted(others):
            self.remove(step)
        if others:
            self._write_state()

    def sweep(self) -> None:
        """Removes what a kill left behind, of this version's saves or of an earlier one's."""
        if not self.path.is_dir():
            return
        unfinished = self.path / _UNFINISHED
        begun = _steps_of(unfinished.glob("*.index"))
        indexed = _steps_of(self.path.glob("*.index"))
        for step in set(self.steps()) - indexed:
            # A save that moved only its data, or a removal that came only to the index.
            if step in begun or step < max(indexed, default=0):
                self.remove(step)
        for path in (unfinished, *self.path.glob(f"{_NAME}-*_temp")):
            shutil.rmtree(path, ignore_errors=True)
        for path in self.path.glob(f"{_STATE}.tmp*"):
            path.unlink(missing_ok=True)
        sweep(self.path / _STATE)

    def _files(self, step: int) -> list[pathlib.Path]:
        return sorted(self.path.glob(f"{_NAME}-{step}.*"))

    def _read(self, prefix: str) -> dict[str, np.ndarray]:
        paths = [*pathlib.Path(prefix).parent.glob(f"{pathlib.Path(prefix).name}.*")]
        for part in ("index", "data"):
            if not any(path.suffix.startswith(f".{part}") for path in paths):
                raise DamagedError(f"its {part} file is missing")
        if not all(path.is_file() for path in paths if path.exists()):
            raise DamagedError("its index or its data is no file, but a folder or a pipe")
        try:
            for path in paths:
                path.open("rb").close()
        except OSError as error:
            raise UsageError(
                f"Expected to be able to read {error.filename}, got: {error.strerror}; let this "
                "user read it, or wait until its disk is there again."
            ) from error
        try:
            reader = tf.train.load_checkpoint(prefix)
            return {name: reader.get_tensor(name) for name in reader.get_variable_to_shape_map()}
        except (tf.errors.OpError, IndexError, ValueError) as error:
            raise DamagedError("its length or a checksum is wrong") from error

    def _write_state(self) -> None:
        """Names the checkpoints for `tf.train.latest_checkpoint`; a run does not depend on it."""
        names = [f'"{_NAME}-{step}"' for step in self.steps()]
        lines = [f"all_model_checkpoint_paths: {name}" for name in names]
        if names:
            lines.insert(0, f"model_checkpoint_path: {names[-1]}")
        write_atomically(self.path / _STATE, "\n".join([*lines, ""]))


def _steps_of(paths: Iterable[pathlib.Path]) -> set[int]:
    """Returns the meta-steps of the checkpoints' files among paths."""
    found = (_FILE.fullmatch(path.name) for path in paths)
    return {int(match.group(1)) for match in found if match}
