"""Base class of what is done between two meta-steps, after the logs are written."""

from __future__ import annotations

import abc

import keras

from amaml_tf.training.checkpoints import Checkpoints
from amaml_tf.training.saving import Saving


class BetweenMetaSteps(keras.callbacks.Callback, abc.ABC):
    """Acts after every `every` meta-steps.

    At the end of an epoch it acts after the logs, if it comes after them among the callbacks: a
    kill in between loses no row, because the meta-steps of the row are then done again.
    """

    def __init__(self, checkpoints: Checkpoints, every: int, saving: Saving) -> None:
        super().__init__()
        self._checkpoints = checkpoints
        self._every = every
        self._saving = saving
        self._last = checkpoints.step

    @abc.abstractmethod
    def act(self) -> None:
        """Does what is to be done."""

    def on_train_batch_end(self, batch: int, logs: dict[str, float] | None = None) -> None:
        if batch + 1 != self.params["steps"]:
            self._act_if_due()

    def on_epoch_end(self, epoch: int, logs: dict[str, float] | None = None) -> None:
        self._act_if_due()

    def _act_if_due(self) -> None:
        step = self._checkpoints.step
        if step % self._every == 0 and step != self._last:
            self._last = step
            self.act()


class SaveCheckpoints(BetweenMetaSteps):
    """Saves a checkpoint."""

    def act(self) -> None:
        with self._saving.of(self._checkpoints.folder.path):
            self._checkpoints.save()
