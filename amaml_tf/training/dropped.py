"""Dropped tasks: named in a file, and too many of them stop the run."""

from __future__ import annotations

import collections
import pathlib

import keras

from amaml_tf.errors import TrainingError
from amaml_tf.training.checkpoints import Checkpoints
from amaml_tf.training.csv_rows import CsvRows
from amaml_tf.training.saving import Saving

DROPPED_FILE = "dropped.csv"
#: Meta-steps over which dropped tasks are counted, and how many of them there must be to judge.
WINDOW, FEWEST = 100, 10


class WatchDroppedTasks(keras.callbacks.Callback):
    """Writes the episodes that failed to a CSV file, a row for every meta-step that has any.

    A meta-step that changed nothing, because its meta-gradient or update was not finite, counts as
    one all of whose tasks are dropped.

    Args:
        checkpoints: of the run.
        path: the file, with the columns `step`, `episodes` (their numbers, from 0) and `undone`.
        max_dropped: the largest fraction of dropped tasks over the last 100 meta-steps.
        saving: what follows if the file cannot be written.
    """

    def __init__(
        self, checkpoints: Checkpoints, path: pathlib.Path, max_dropped: float, saving: Saving
    ) -> None:
        super().__init__()
        self._checkpoints = checkpoints
        self._path, self._saving = path, saving
        self._rows = CsvRows(path, checkpoints.step)
        self._max_dropped = max_dropped
        self._fractions: collections.deque[float] | None = None

    def on_train_batch_end(self, batch: int, logs: dict[str, float] | None = None) -> None:
        last = self.model.last_batch
        counts, stands = last.counts.numpy(), bool(last.stands.numpy())
        step = self._checkpoints.step
        if self._fractions is None:
            self._fractions = self._before(step, counts.size)
        self._fractions.append(1 - counts.mean() if stands else 1.0)
        if self._fractions[-1]:
            first = (step - 1) * counts.size
            episodes = " ".join(str(first + int(n)) for n in (~counts).nonzero()[0])
            with self._saving.of(self._path):
                self._rows.append({"step": step, "episodes": episodes, "undone": int(not stands)})
        self._require_few(self._fractions)

    def _before(self, step: int, size: int) -> collections.deque[float]:
        """Returns the fractions of the meta-steps that the run had made before it was stopped."""
        dropped = {}
        for row in self._rows.read():  # another program may have removed columns
            share = len(row.get("episodes", "").split()) / size
            dropped[int(row["step"])] = 1.0 if row.get("undone") == "1" else share
        steps = range(max(1, step - WINDOW), step)
        return collections.deque((dropped.get(each, 0.0) for each in steps), maxlen=WINDOW)

    def _require_few(self, fractions: collections.deque[float]) -> None:
        count = len(fractions)
        fraction = sum(fractions) / count
        if count >= FEWEST and fraction > self._max_dropped:
            raise TrainingError(
                f"Expected at most {self._max_dropped:.0%} of the tasks to be dropped, got "
                f"{fraction:.0%} over {count} meta-steps, at meta-step {self._checkpoints.step}, "
                f"which is not saved; {DROPPED_FILE} names their episodes. Look at one with "
                "--replay_episode=N, take a smaller --meta_learning_rate or --clip_norm in a new "
                "run, or allow more with --max_dropped."
            )
