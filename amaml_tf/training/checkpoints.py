"""Saving and restoring the checkpoints of a run."""

from __future__ import annotations

import pathlib

import keras
import tensorflow as tf

from amaml_tf.aliases import PathLike
from amaml_tf.errors import UsageError
from amaml_tf.learner.meta_learner import MetaLearner

CHECKPOINT_FOLDER = "checkpoints"


class Checkpoints:
    """The checkpoints of a run, in `WORKDIR/checkpoints`.

    A checkpoint holds everything that the next meta-step depends on: the variables of the model
    (with seeds and stored statistics), of the optimizer (with the number of the meta-step) and of
    the algorithm. Episodes depend only on their number. If `save` is interrupted, the previous
    checkpoint remains.

    Args:
        learner: a compiled learner.
        workdir: folder of the run.
        max_to_keep: how many checkpoints to keep, the newest ones.
    """

    def __init__(self, learner: MetaLearner, workdir: PathLike, max_to_keep: int = 3) -> None:
        self._optimizer = learner.optimizer
        trainable = [*learner.model.trainable_variables, *learner.algorithm_variables]
        if not self._optimizer.built:
            self._optimizer.build(trainable)
        # Lists in the order of creation: Keras's own names change from one process to the next.
        checkpoint = tf.train.Checkpoint(
            model=[variable.value for variable in learner.model.variables],
            optimizer=[variable.value for variable in self._optimizer.variables],
            algorithm=[variable.value for variable in learner.algorithm_variables],
        )
        self._manager = tf.train.CheckpointManager(
            checkpoint,
            str(pathlib.Path(workdir) / CHECKPOINT_FOLDER),
            max_to_keep=max_to_keep,
            checkpoint_name="meta_step",
        )

    @property
    def step(self) -> int:
        """Number of meta-steps taken."""
        return int(self._optimizer.iterations)

    def save(self) -> None:
        """Writes a checkpoint of the learner in its current state."""
        self._manager.save(checkpoint_number=self.step)

    def restore(self) -> int:
        """Restores the newest checkpoint, if there is one; returns the number of its meta-step."""
        if self._manager.latest_checkpoint:
            status = self._manager.checkpoint.restore(self._manager.latest_checkpoint)
            status.assert_existing_objects_matched()
        return self.step


def has_checkpoint(workdir: PathLike) -> bool:
    """Returns whether `workdir` holds a run with a checkpoint."""
    return tf.train.latest_checkpoint(str(pathlib.Path(workdir) / CHECKPOINT_FOLDER)) is not None


def require_checkpoint(workdir: PathLike) -> None:
    """Raises UsageError unless `workdir` holds a checkpoint."""
    if not has_checkpoint(workdir):
        raise UsageError(
            f"Expected a checkpoint in {pathlib.Path(workdir) / CHECKPOINT_FOLDER}, got none; "
            "train there first, or pass the workdir of a run."
        )


def restore(learner: MetaLearner, workdir: PathLike) -> int:
    """Restores `learner` from the newest checkpoint of the run in `workdir`.

    Returns:
        The number of its meta-step.

    Raises:
        UsageError: there is no checkpoint.
    """
    require_checkpoint(workdir)
    return Checkpoints(learner, workdir).restore()


class SaveCheckpoints(keras.callbacks.Callback):
    """Saves a checkpoint after every `every` meta-steps."""

    def __init__(self, checkpoints: Checkpoints, every: int) -> None:
        super().__init__()
        self._checkpoints = checkpoints
        self._every = every

    def on_train_batch_end(self, batch: int, logs: dict[str, float] | None = None) -> None:
        if self._checkpoints.step % self._every == 0:
            self._checkpoints.save()
