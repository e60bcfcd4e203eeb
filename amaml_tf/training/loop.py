"""The one training loop. It goes on where it was stopped."""

from __future__ import annotations

import pathlib
import sys
from collections.abc import Sequence

import keras

from amaml_tf.aliases import PathLike
from amaml_tf.learner.meta_learner import MetaLearner
from amaml_tf.tasks.base import TaskFamily
from amaml_tf.training.checkpoints import Checkpoints, SaveCheckpoints
from amaml_tf.training.logs import LOG_FILE, TENSORBOARD_FOLDER, CsvLog, TensorBoard


def train(
    learner: MetaLearner,
    family: TaskFamily,
    workdir: PathLike,
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
    checkpoints: Checkpoints, workdir: PathLike, checkpoint_every: int
) -> list[keras.callbacks.Callback]:
    folder = pathlib.Path(workdir)
    return [
        CsvLog(checkpoints, folder / LOG_FILE),
        TensorBoard(checkpoints, folder / TENSORBOARD_FOLDER),
        SaveCheckpoints(checkpoints, checkpoint_every),
    ]
