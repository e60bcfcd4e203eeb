"""Where a command may write: not over the files of the run."""

from __future__ import annotations

import os
import pathlib
import tempfile

from amaml_tf.commands.run_statistics import STATISTICS_FILE
from amaml_tf.errors import UsageError
from amaml_tf.experiment import CONFIG_FILE
from amaml_tf.experiment.task_file import TASK_FILE
from amaml_tf.training import (
    CHECKPOINT_FOLDER,
    DROPPED_FILE,
    LOG_FILE,
    TENSORBOARD_FOLDER,
    VALIDATION_FILE,
)
from amaml_tf.user_files import user_path


def evaluation_file(value: str, workdir: pathlib.Path) -> pathlib.Path:
    """Returns the JSON file that --evaluation_file names; a CSV file and a figure go beside it.

    Raises:
        UsageError: it does not end in .json, is a folder, these would overwrite the run, or nothing
            can be written there.
    """
    path = user_path(value)
    if path.suffix != ".json":
        raise UsageError(
            f"Expected --evaluation_file to end in .json, got {value}; the CSV file and the figure "
            "are written beside it."
        )
    for written in (path, path.with_suffix(".csv"), path.with_suffix(".png")):
        if os.path.isdir(written):
            raise UsageError(
                f"Expected --evaluation_file to be a file, got {value}, and {written} is a folder; "
                "pass another name."
            )
        _refuse_files_of_the_run("evaluation_file", value, written, workdir)
    _require_room(path)
    return path


def export_folder(value: str, workdir: pathlib.Path) -> pathlib.Path:
    """Returns the folder that --export_dir names.

    Raises:
        UsageError: it is a file, or among the files of the run.
    """
    path = user_path(value)
    if os.path.isfile(path):
        raise UsageError(
            f"Expected --export_dir to be a folder, got the file {value}; pass another name."
        )
    _refuse_files_of_the_run("export_dir", value, path, workdir)
    return path


def _require_room(path: pathlib.Path) -> None:
    """Raises UsageError if no file can be made at `path`, before there is something to write."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path.parent):
            path.with_name(f".{path.name}.{'x' * 8}").exists()  # raises if names are too long
    except OSError as error:
        raise UsageError(
            f"Expected a place where {path} can be written, got: {error.strerror}; pass another "
            "name, make room there, or let this user write there."
        ) from error


def _refuse_files_of_the_run(
    flag: str, value: str, written: pathlib.Path, workdir: pathlib.Path
) -> None:
    real = pathlib.Path(os.path.realpath(written))
    files = CONFIG_FILE, TASK_FILE, STATISTICS_FILE, LOG_FILE, DROPPED_FILE, VALIDATION_FILE
    for name in (*files, CHECKPOINT_FOLDER, TENSORBOARD_FOLDER):
        own = pathlib.Path(os.path.realpath(workdir / name))
        if own in (real, *real.parents):
            raise UsageError(
                f"Expected --{flag} to leave the files of the run alone, got {value}, which would "
                f"overwrite {workdir / name}; pass another name."
            )
