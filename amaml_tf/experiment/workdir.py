"""The settings of a run in its folder, and what a run may be resumed with."""

from __future__ import annotations

import dataclasses
import json
import pathlib
from typing import TypeVar

from amaml_tf.aliases import PathLike
from amaml_tf.errors import UsageError
from amaml_tf.experiment.declaration import ON_RESUMING
from amaml_tf.experiment.settings import Settings
from amaml_tf.files import write_atomically
from amaml_tf.training import has_checkpoint
from amaml_tf.user_files import read_json

CONFIG_FILE = "config.json"

S = TypeVar("S", bound="RunSettings")


class RunSettings(Settings):
    """Settings that a run keeps in `WORKDIR/config.json`."""

    def write(self, workdir: PathLike) -> None:
        """Writes the settings to the folder `workdir`, made if need be, as JSON.

        Raises:
            UsageError: nothing can be written there.
        """
        text = json.dumps(dataclasses.asdict(self), indent=2) + "\n"
        try:
            pathlib.Path(workdir).mkdir(parents=True, exist_ok=True)
            write_atomically(pathlib.Path(workdir) / CONFIG_FILE, text)
        except OSError as error:
            raise UsageError(
                f"Expected workdir to be a folder that can be written to, got {workdir} "
                f"({error.strerror}); pass another."
            ) from error

    @classmethod
    def read(cls: type[S], workdir: PathLike) -> S:
        """Returns the settings of the run in `workdir`.

        Raises:
            UsageError: there is no run, or its settings cannot be read.
        """
        path = pathlib.Path(workdir) / CONFIG_FILE
        if not path.is_file():
            raise UsageError(
                f"Expected workdir to be the folder of a run, got {workdir} without a "
                f"{CONFIG_FILE}; train there first, or pass the right folder."
            )
        values = read_json(path, "the settings of a run")
        if not isinstance(values, dict):
            raise UsageError(
                f"Expected the settings of a run, got {path} with another structure; restore the "
                "file, or pass another workdir."
            )
        try:
            return cls.from_values(values)
        except UsageError as error:
            raise UsageError(
                f"Expected {path} to hold the settings of a run of this version, got a file that "
                f"does not ({error}); use the version that wrote it, or another workdir."
            ) from error

    def require_free_or_own(self, workdir: PathLike) -> None:
        """Raises UsageError if `workdir` holds a run with other settings.

        Only a run that has come as far as a checkpoint counts: there is nothing to lose before.
        """
        if has_checkpoint(workdir):
            self.refuse_unless_like(type(self).read(workdir), str(workdir), ON_RESUMING)
