"""The logs of a run: a CSV file, and curves for TensorBoard."""

from __future__ import annotations

import csv
import pathlib
import time
from typing import TypeAlias

import keras
import tensorflow as tf

from amaml_tf.files import write_atomically
from amaml_tf.training.checkpoints import Checkpoints

LOG_FILE = "log.csv"
TENSORBOARD_FOLDER = "tensorboard"

#: What Keras passes to callbacks: losses and metrics by name.
Logs: TypeAlias = dict[str, float]


class CsvLog(keras.callbacks.Callback):
    """Writes a row after every epoch: the meta-step, the epoch's seconds, and Keras's logs.

    (Keras's own has no meta-steps, and does not remove rows when a run resumes.)
    """

    def __init__(self, checkpoints: Checkpoints, path: pathlib.Path) -> None:
        super().__init__()
        self._checkpoints = checkpoints
        self._path = path
        self._names: list[str] = []
        self._start = 0.0
        self._forget_rows_after(checkpoints.step)

    def on_epoch_begin(self, epoch: int, logs: Logs | None = None) -> None:
        self._start = time.perf_counter()

    def on_epoch_end(self, epoch: int, logs: Logs | None = None) -> None:
        seconds = round(time.perf_counter() - self._start, 3)
        row = {"step": self._checkpoints.step, "seconds": seconds, **(logs or {})}
        is_new = not self._names
        self._names = self._names or list(row)
        with self._path.open("a", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, self._names, extrasaction="ignore", lineterminator="\n")
            if is_new:
                writer.writeheader()
            writer.writerow(row)

    def _forget_rows_after(self, step: int) -> None:
        """Removes the rows that a stopped run logged after the checkpoint it resumes from."""
        if not self._path.is_file():
            return
        lines = self._path.read_text(encoding="utf-8").splitlines(keepends=True)
        rows = [line for line in lines[1:] if line.endswith("\n") and _step_of(line) <= step]
        self._names = lines[0].strip().split(",") if rows else []
        write_atomically(self._path, "".join([lines[0], *rows]) if rows else "")


def _step_of(row: str) -> int:
    return int(row.split(",")[0])


class TensorBoard(keras.callbacks.Callback):
    """Writes the logs for TensorBoard, over meta-steps (Keras's own writes them over epochs)."""

    def __init__(self, checkpoints: Checkpoints, folder: pathlib.Path) -> None:
        super().__init__()
        self._checkpoints = checkpoints
        self._folder = folder
        self._writer: tf.summary.SummaryWriter | None = None

    def on_epoch_end(self, epoch: int, logs: Logs | None = None) -> None:
        if self._writer is None:  # not earlier: the first meta-step should not wait for it
            self._writer = tf.summary.create_file_writer(str(self._folder))
        with self._writer.as_default(step=self._checkpoints.step):
            for name, value in (logs or {}).items():
                tf.summary.scalar(name, value)
        self._writer.flush()
