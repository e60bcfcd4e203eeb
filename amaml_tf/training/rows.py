"""The stretches of meta-steps that have a row in the log: each is whole, and has its row."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import keras

from amaml_tf.errors import TrainingError
from amaml_tf.training.checkpoints import Checkpoints


class Rows(keras.callbacks.Callback):
    """Watches over the rows of the logs; a row is an epoch of Keras.

    A run whose family has no more episodes is ended. (Keras would begin with the first again.)

    Args:
        checkpoints: of the run.
        num_meta_steps: how many meta-steps the run is to have.
        logs: callbacks that write a row at the end of an epoch.
    """

    def __init__(
        self,
        checkpoints: Checkpoints,
        num_meta_steps: int,
        logs: Sequence[keras.callbacks.Callback],
    ) -> None:
        super().__init__()
        self._checkpoints = checkpoints
        self._num_meta_steps = num_meta_steps
        self.logs = logs
        self._first = self._at_begin = checkpoints.step
        self._epoch: int | None = None

    def on_epoch_begin(self, epoch: int, logs: Mapping[str, float] | None = None) -> None:
        self._at_begin, self._epoch = self._checkpoints.step, epoch

    def on_epoch_end(self, epoch: int, logs: Mapping[str, float] | None = None) -> None:
        self._epoch = None
        if not self.model.stop_training and not self._is_whole():
            self._refuse()

    def end(self) -> None:
        """Writes the row of an epoch that a user's callback stopped after its last meta-step."""
        if self._epoch is not None and self._is_whole():
            epoch, self._epoch = self._epoch, None
            for log in self.logs:
                log.on_epoch_end(epoch, self.model.get_metrics_result())

    def _is_whole(self) -> bool:
        return bool(self._checkpoints.step == self._at_begin + self.params["steps"])

    def _refuse(self) -> None:
        step = self._checkpoints.step
        if step > self._first:
            self._checkpoints.save()
        reached = f"{step} meta-steps are done and saved" if step else "there are none at all"
        raise TrainingError(
            f"Expected training episodes for {self._num_meta_steps} meta-steps, got too few: "
            f"{reached}. Give more (a generator that does not end, a data set that is not empty), "
            f"or pass fewer meta-steps."
        )
