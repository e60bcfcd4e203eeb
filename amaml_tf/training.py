"""The one training loop, with its logs and checkpoints; it goes on where it was stopped."""

from __future__ import annotations

import csv
import os
import pathlib
import sys
import time
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
    pathlib.Path(workdir).mkdir(parents=True, exist_ok=True)
    checkpoints = Checkpoints(learner, workdir)
    first = checkpoints.restore()
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
        if checkpoints.step > first:
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
        _CsvLog(checkpoints, folder / LOG_FILE),
        _TensorBoard(checkpoints, folder / TENSORBOARD_FOLDER),
        _SaveCheckpoints(checkpoints, checkpoint_every),
    ]


class _CsvLog(keras.callbacks.Callback):
    """Writes a row after every epoch: the meta-step, the epoch's seconds, and Keras's logs.

    (Keras's own has no meta-steps, and knows of no entries to forget.)
    """

    def __init__(self, checkpoints: Checkpoints, path: pathlib.Path) -> None:
        super().__init__()
        self._checkpoints = checkpoints
        self._path = path
        self._names: list[str] = []
        self._start = 0.0
        self._forget_rows_after(checkpoints.step)

    def on_epoch_begin(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        self._start = time.perf_counter()

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
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
        """Removes what a stopped run logged after the checkpoint that it goes on from."""
        if not self._path.is_file():
            return
        lines = self._path.read_text(encoding="utf-8").splitlines(keepends=True)
        rows = [line for line in lines[1:] if line.endswith("\n") and _step_of(line) <= step]
        self._names = lines[0].strip().split(",") if rows else []
        write_atomically(self._path, "".join([lines[0], *rows]) if rows else "")


def _step_of(row: str) -> int:
    return int(row.split(",")[0])


class _TensorBoard(keras.callbacks.Callback):
    """Writes the logs for TensorBoard, over meta-steps (Keras's own writes them over epochs)."""

    def __init__(self, checkpoints: Checkpoints, folder: pathlib.Path) -> None:
        super().__init__()
        self._checkpoints = checkpoints
        self._folder = folder
        self._writer: Any = None

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        if self._writer is None:  # not before: the first meta-step should not wait for it
            self._writer = tf.summary.create_file_writer(str(self._folder))
        with self._writer.as_default(step=self._checkpoints.step):
            for name, value in (logs or {}).items():
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
