"""The training loop, which resumes a stopped run from its newest checkpoint."""

from __future__ import annotations

import pathlib
import sys
from collections.abc import Sequence

import keras

from amaml_tf.aliases import PathLike
from amaml_tf.learner.meta_learner import MetaLearner
from amaml_tf.tasks.base import TaskFamily
from amaml_tf.training.checkpoints import Checkpoints, SaveCheckpoints
from amaml_tf.training.logs import LOG_FILE, CsvLog
from amaml_tf.training.tensorboard import TENSORBOARD_FOLDER, TensorBoard


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

    A run that was stopped and resumed ends with the same numbers as an uninterrupted one, if the
    device always computes the same sums in the same way.

    Args:
        learner: a compiled learner.
        family: the task family to train on.
        workdir: folder for checkpoints, `log.csv` and TensorBoard's files; created if needed.
        num_meta_steps: total number of meta-steps, with those of a stopped run.
        meta_batch_size: tasks per meta-step.
        seed: seed of the stream of episodes.
        log_every: meta-steps between two entries of the logs; each entry is a mean over them.
        checkpoint_every: meta-steps between two checkpoints.
        callbacks: further Keras callbacks; an epoch is the stretch between two log entries.

    Returns:
        Number of meta-steps taken in this call.

    Raises:
        AdaptationError: the flow of a task fails, and the learner does not drop such tasks.
        KeyboardInterrupt: raised again after a checkpoint is saved; its text says how to resume.
    """
    pathlib.Path(workdir).mkdir(parents=True, exist_ok=True)
    checkpoints = Checkpoints(learner, workdir)
    first = checkpoints.resume()
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
            "same command again to resume."
        ) from None
    if checkpoints.step > first:
        checkpoints.save()
    return checkpoints.step - first


def _epochs(step: int, num_meta_steps: int, log_every: int) -> dict[str, int]:
    """Returns the arguments of the next call of `fit`: whole epochs, or the rest of one."""
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
