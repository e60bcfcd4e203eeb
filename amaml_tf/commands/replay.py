"""What becomes of one episode of the training, to find out why it fails."""

from __future__ import annotations

import pathlib

import numpy as np
import tensorflow as tf

from amaml_tf.errors import UsageError
from amaml_tf.experiment import Experiment
from amaml_tf.learner.meta_learner import MetaLearner
from amaml_tf.tasks import TaskFamily
from amaml_tf.training import has_checkpoint, restore


def replay_episode(
    experiment: Experiment,
    family: TaskFamily,
    learner: MetaLearner,
    workdir: pathlib.Path,
    number: int,
) -> None:
    """Adapts to one training episode from the newest checkpoint, and prints what comes out.

    Raises:
        UsageError: there are not so many episodes.
        AdaptationError: the adaptation fails, which is what one wants to read about.
    """
    step = restore(learner, workdir) if has_checkpoint(workdir) else 0
    learner.on_failure = "raise"
    episodes = family.episodes(
        "train", batch_size=1, seed=experiment.seed, start=number, num_batches=1
    )
    batch = next(iter(episodes), None)
    if batch is None:
        raise UsageError(
            f"Expected a training episode of number {number}, got fewer; pass a smaller "
            "--replay_episode."
        )
    names = ("support x", "support y", "query x", "query y")
    arrays = [*batch[0][:2], *batch[1][:2]]
    for name, values in zip(names, arrays, strict=True):
        print(f"{name:<10} {_summary(values[0])}")
    before = float(learner.predict_episodes(batch).before[0][0])
    result = learner.meta_gradients(batch)
    norm = tf.linalg.global_norm(result.gradients)
    print(
        f"Episode {number} after meta-step {step}: query loss {before:.6g} before adaptation, "
        f"{result.loss:.6g} after; norm of its meta-gradient {norm:.6g}.",
        flush=True,
    )


def _summary(values: tf.Tensor) -> str:
    array = np.asarray(values)
    strange = int(np.sum(~np.isfinite(array)))
    return f"shape {array.shape}, from {array.min():.6g} to {array.max():.6g}, {strange} not finite"
