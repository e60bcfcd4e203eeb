"""The one training loop, with its logs and checkpoints; it goes on where it was stopped."""

from __future__ import annotations

import csv
import io
import os
import pathlib
import sys
from collections.abc import Sequence
from typing import Any

import keras
import tensorflow as tf

from amaml_tf.files import write_atomically
from amaml_tf.meta_learner import MetaLearner
from amaml_tf.tasks import TaskFamily

CHECKPOINT_FOLDER = "checkpoints"
LOG_FILE = "log.csv"
TENSORBOARD_FOLDER = "tensorboard"


class Checkpoints:
    """The checkpoints of a run, in `WORKDIR/checkpoints`.

    A checkpoint holds all that the next meta-step depends on: the variables of the model (seeds
    and stored statistics too), of the optimizer (the number of the meta-step too) and of the
    algorithm. Episodes depend on their number alone. An interrupted `save` leaves the one before.

    Args:
        learner: compiled.
        workdir: folder of the run.
        max_to_keep: newest checkpoints to keep.
    """

    def __init__(
        self, learner: MetaLearner, workdir: str | os.PathLike[str], max_to_keep: int = 3
    ) -> None:
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
        """Writes a checkpoint of the learner as it is."""
        self._manager.save(checkpoint_number=self.step)

    def restore(self) -> int:
        """Restores the newest checkpoint, if there is one; returns the number of its meta-step."""
        if self._manager.latest_checkpoint:
            status = self._manager.checkpoint.restore(self._manager.latest_checkpoint)
            status.assert_existing_objects_matched()
        return self.step


def has_checkpoint(workdir: str | os.PathLike[str]) -> bool:
    """Returns whether `workdir` holds a run that has come as far as a checkpoint."""
    return tf.train.latest_checkpoint(str(pathlib.Path(workdir) / CHECKPOINT_FOLDER)) is not None


def require_checkpoint(workdir: str | os.PathLike[str]) -> None:
    """Raises ValueError unless `workdir` holds a checkpoint."""
    if not has_checkpoint(workdir):
        raise ValueError(
            f"Expected a checkpoint in {pathlib.Path(workdir) / CHECKPOINT_FOLDER}, got none; "
            "train there first, or pass the workdir of a run."
        )


def restore(learner: MetaLearner, workdir: str | os.PathLike[str]) -> int:
    """Gives `learner` the newest checkpoint of the run in `workdir`.

    Returns:
        The number of its meta-step.

    Raises:
        ValueError: there is no checkpoint.
    """
    require_checkpoint(workdir)
    return Checkpoints(learner, workdir).restore()


def train(
    learner: MetaLearner,
    family: TaskFamily,
    workdir: str | os.PathLike[str],
    *,
    num_meta_steps: int,
    meta_batch_size: int,
    seed: int = 0,
    log_every: int = 100,
    checkpoint_every: int = 500,
    callbacks: Sequence[keras.callbacks.Callback] = (),
) -> int:
    """Trains until `num_meta_steps` meta-steps are done, from the newest checkpoint in `workdir`.

    A run that was stopped and went on ends as one that was not: with the same numbers, where the
    device computes the same sums twice.

    Args:
        learner: compiled.
        family: whose training tasks to learn from.
        workdir: folder for checkpoints, `log.csv` and TensorBoard's files; made if need be.
        num_meta_steps: meta-steps in all, those of a stopped run included.
        meta_batch_size: tasks in a meta-step.
        seed: of the stream of episodes.
        log_every: meta-steps between two entries of the logs, each a mean over them.
        checkpoint_every: meta-steps between two checkpoints.
        callbacks: further ones; for Keras an epoch is the stretch between two log entries.

    Returns:
        Number of meta-steps taken in this call.

    Raises:
        AdaptationError: the flow of a task fails, and the learner is not to drop such tasks.
        KeyboardInterrupt: as it came, after a checkpoint; its text says how to go on.
    """
    checkpoints = Checkpoints(learner, workdir)
    first = checkpoints.restore()
    _forget_later_entries(pathlib.Path(workdir) / LOG_FILE, first)
    callbacks = [*callbacks, *_callbacks(checkpoints, workdir, checkpoint_every)]
    try:
        while checkpoints.step < num_meta_steps:
            step = checkpoints.step
            episodes = family.episodes("train", batch_size=meta_batch_size, seed=seed, start=step)
            learner.fit(
                episodes,
                **_epochs(step, num_meta_steps, log_every),
                callbacks=callbacks,
                shuffle=False,
                verbose=1 if sys.stdout.isatty() else 2,
            )
            if learner.stop_training:
                break
    except KeyboardInterrupt:
        checkpoints.save()
        raise KeyboardInterrupt(
            f"Stopped and saved after meta-step {checkpoints.step} of {num_meta_steps}; run the "
            "same command again to go on."
        ) from None
    if checkpoints.step > first:
        checkpoints.save()
    return checkpoints.step - first


def _epochs(step: int, num_meta_steps: int, log_every: int) -> dict[str, int]:
    """Arguments of the next call of `fit`: whole epochs, or what is left of one."""
    epoch, done = divmod(step, log_every)
    whole = (num_meta_steps - step) // log_every
    if done or not whole:
        length = min(log_every - done, num_meta_steps - step)
        return {"initial_epoch": epoch, "epochs": epoch + 1, "steps_per_epoch": length}
    return {"initial_epoch": epoch, "epochs": epoch + whole, "steps_per_epoch": log_every}


def _callbacks(
    checkpoints: Checkpoints, workdir: str | os.PathLike[str], checkpoint_every: int
) -> list[keras.callbacks.Callback]:
    folder = pathlib.Path(workdir)
    return [
        _Step(checkpoints),
        keras.callbacks.CSVLogger(str(folder / LOG_FILE), append=True),
        _TensorBoard(str(folder / TENSORBOARD_FOLDER)),
        _SaveCheckpoints(checkpoints, checkpoint_every),
    ]


class _Step(keras.callbacks.Callback):
    """Adds the number of the meta-step to the logs, for the callbacks that follow."""

    def __init__(self, checkpoints: Checkpoints) -> None:
        super().__init__()
        self._checkpoints = checkpoints

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        if logs is not None:
            logs["step"] = self._checkpoints.step
            # A run that is resumed with another `on_failure` keeps the columns of its log.
            logs.setdefault("dropped_tasks", 0.0)


class _TensorBoard(keras.callbacks.Callback):
    """Writes the logs for TensorBoard, over meta-steps (Keras's own writes them over epochs)."""

    def __init__(self, folder: str) -> None:
        super().__init__()
        self._folder = folder
        self._writer: Any = None

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        values = dict(logs or {})
        step = values.pop("step")
        if self._writer is None:
            self._writer = tf.summary.create_file_writer(self._folder)
        with self._writer.as_default(step=step):
            for name, value in values.items():
                tf.summary.scalar(name, value)
        self._writer.flush()


class _SaveCheckpoints(keras.callbacks.Callback):
    def __init__(self, checkpoints: Checkpoints, every: int) -> None:
        super().__init__()
        self._checkpoints = checkpoints
        self._every = every

    def on_train_batch_end(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        if self._checkpoints.step % self._every == 0:
            self._checkpoints.save()


def _forget_later_entries(log_file: pathlib.Path, step: int) -> None:
    """Removes what a stopped run logged after the checkpoint that it goes on from."""
    if not log_file.is_file():
        return
    with log_file.open(newline="", encoding="utf-8") as file:
        reader = csv.DictReader(file)
        names = reader.fieldnames or []
        rows = [row for row in reader if row.get("step") and int(float(row["step"])) <= step]
    text = io.StringIO()
    if rows:
        writer = csv.DictWriter(text, names, extrasaction="ignore")
        writer.writeheader()
        writer.writerows(rows)
    write_atomically(log_file, text.getvalue())
