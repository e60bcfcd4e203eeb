"""The clock that counts the seconds of training, in the same way for every method."""

from __future__ import annotations

import json
import math
import pathlib
import time

import keras

from amaml_tf.errors import UsageError
from amaml_tf.files import write_atomically
from amaml_tf.user_files import read_json

CLOCK_FILE = "clock.json"


class Clock(keras.callbacks.Callback):
    """Counts the seconds of the meta-steps, and stops training after `limit` seconds.

    The first meta-step of each process is mostly compilation and is counted separately.
    Evaluations, logs and checkpoints are not counted. A resumed run continues with the count of
    its checkpoint. A `schedule`, if there is one, gives the meta learning rate for every second.

    Args:
        workdir: folder of the run.
        step: meta-step of the checkpoint that the run resumes from, 0 for a new run.
    """

    def __init__(self, workdir: pathlib.Path, step: int) -> None:
        super().__init__()
        self._path = workdir / CLOCK_FILE
        self.limit = math.inf
        self.schedule: keras.optimizers.schedules.LearningRateSchedule | None = None
        self.step, self.seconds, self.first_step_seconds = step, 0.0, 0.0
        self._is_first = True
        self._start = 0.0
        self._seconds_at: dict[str, float] = {}
        if self._path.is_file() and step:
            stored = read_json(self._path, "the seconds of a run")
            try:
                self.first_step_seconds = float(stored["first_step_seconds"])  # type: ignore[index]
                seconds_at = stored["seconds_at"].items()  # type: ignore[index]
                self._seconds_at = {n: float(s) for n, s in seconds_at if int(n) <= step}
            except (AttributeError, KeyError, TypeError, ValueError) as error:
                raise UsageError(
                    f"Expected the seconds of a run, got {self._path} with another structure; "
                    f"remove {workdir}, so that the run is made anew."
                ) from error
            self.seconds = max(self._seconds_at.values(), default=0.0)

    def on_train_batch_begin(self, batch: int, logs: dict[str, float] | None = None) -> None:
        if self.schedule is not None:
            self.model.optimizer.learning_rate = float(self.schedule(self.seconds))
        self._start = time.perf_counter()

    def on_train_batch_end(self, batch: int, logs: dict[str, float] | None = None) -> None:
        float((logs or {}).get("loss", 0.0))  # waits for an accelerator
        seconds = time.perf_counter() - self._start
        self.step += 1
        if self._is_first:
            self._is_first = False
            self.first_step_seconds += seconds
        else:
            self.seconds += seconds
        if self.step % 100 == 0:
            self.write()
        if self.seconds >= self.limit:
            self.model.stop_training = True

    def write(self) -> None:
        """Writes the count to the run's folder."""
        self._seconds_at[str(self.step)] = self.seconds
        values = {
            "first_step_seconds": self.first_step_seconds,
            "seconds_at": self._seconds_at,
        }
        write_atomically(self._path, json.dumps(values) + "\n")
