"""Damaged checkpoints: whatever is damaged, the newest whole one is found, or all are refused."""

from __future__ import annotations

import pathlib
import random
import shutil
from collections.abc import Iterator

import fuzzing
import keras
import numpy as np

import amaml_tf as amaml
from amaml_tf.errors import UsageError
from amaml_tf.training import CHECKPOINT_FOLDER, Checkpoints

STEPS = (1, 2, 3)


def damages(folder: pathlib.Path, count: int, rng: random.Random) -> Iterator[str]:
    """Damages files of a run of three checkpoints, and resumes it."""
    whole = folder / "whole"
    for step in STEPS:
        learner = _learner()
        _set(learner, step)
        Checkpoints(learner, whole).save()
    learner = _learner()
    for _ in range(count):
        workdir = folder / "damaged"
        shutil.copytree(whole, workdir)
        sound = _damage(workdir / CHECKPOINT_FOLDER, rng)
        yield fuzzing.outcome(_resumed, learner, workdir, sound)
        shutil.rmtree(workdir)


def _learner() -> amaml.MetaLearner:
    model = keras.Sequential([keras.Input((1,)), keras.layers.Dense(8), keras.layers.Dense(1)])
    learner = amaml.MetaLearner(model, amaml.algorithms.MAML(0.1, 1))
    learner.compile(optimizer=keras.optimizers.Adam(), loss="mse", jit_compile="off")
    learner.optimizer.build(learner.trainable_variables)
    return learner


def _set(learner: amaml.MetaLearner, step: int) -> None:
    learner.optimizer.iterations.assign(step)
    for variable in learner.trainable_variables:
        variable.assign(np.full(variable.shape, step, np.float32))


def _damage(folder: pathlib.Path, rng: random.Random) -> set[int]:
    """Damages files; returns the meta-steps none of whose files is damaged."""
    sound = set(STEPS)
    files = sorted(path for path in folder.iterdir() if path.is_file())
    for path in rng.sample(files, rng.randint(1, len(files))):
        before = path.read_bytes()
        kind = rng.randrange(6)
        if kind == 0:
            path.unlink()
        elif kind == 1:
            path.write_bytes(bytes(len(before)))
        elif kind == 2:
            path.write_bytes(rng.choice([each for each in files if each.exists()]).read_bytes())
        else:
            path.write_bytes(fuzzing.damaged(before, rng))
        if path.name != "checkpoint" and not (path.exists() and path.read_bytes() == before):
            sound -= {int(path.stem.rpartition("-")[2])}
    return sound


def _resumed(learner: amaml.MetaLearner, workdir: pathlib.Path, sound: set[int]) -> str:
    _set(learner, 0)
    try:
        step = Checkpoints(learner, workdir).resume()
    except UsageError as error:
        is_told = fuzzing.told(str(error)) == "told" and not sound
        return "told: none was whole" if is_told else f"lost, with {sound} whole: {error}"
    values = {float(each) for v in learner.trainable_variables for each in np.ravel(v.numpy())}
    if step < max(sound, default=0) or values != {float(step)}:
        return f"wrong: {step} with weights {values}, {sound} are whole"
    return "kept: the newest whole one" if step in sound else "kept: what no damage has changed"
