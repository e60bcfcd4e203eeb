"""The log of a run: a CSV file with a row for every stretch of meta-steps."""

from __future__ import annotations

import pathlib
import time
from collections.abc import Mapping

import keras

from amaml_tf.training.checkpoints import Checkpoints
from amaml_tf.training.csv_rows import CsvRows
from amaml_tf.training.saving import Saving

LOG_FILE = "log.csv"


class CsvLog(keras.callbacks.Callback):
    """Writes a row after every epoch: the meta-step, the epoch's seconds, and Keras's logs.

    (Keras's own has no meta-steps, and does not remove rows when a run resumes.)
    """

    def __init__(self, checkpoints: Checkpoints, path: pathlib.Path, saving: Saving) -> None:
        super().__init__()
        self._checkpoints = checkpoints
        self._path, self._saving = path, saving
        self._rows = CsvRows(path, checkpoints.step)
        self._start = 0.0

    def on_epoch_begin(self, epoch: int, logs: Mapping[str, float] | None = None) -> None:
        self._start = time.perf_counter()

    def on_epoch_end(self, epoch: int, logs: Mapping[str, float] | None = None) -> None:
        seconds = round(time.perf_counter() - self._start, 3)
        with self._saving.of(self._path):
            self._rows.append({"step": self._checkpoints.step, "seconds": seconds, **(logs or {})})
