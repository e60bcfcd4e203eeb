"""A run that is killed before any of its file operations goes on to the same end."""

import csv
import functools
import pathlib

import keras
import numpy as np
import pytest
from killing import KILLER, numbers

import amaml_tf as amaml
from amaml_tf import training

FAMILY = amaml.tasks.SinusoidFamily(num_support=3, num_query=3)


@pytest.fixture(scope="module")
def learner():
    model = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1)])
    learner = amaml.MetaLearner(model, amaml.algorithms.MAML(0.1, 1))
    learner.compile(optimizer="sgd", loss="mse", jit_compile="off")
    return learner


def train(learner, workdir):
    """The weights after a run, or what is left of it, in a process of its own."""
    learner.optimizer.build(learner.trainable_variables)
    learner.optimizer.iterations.assign(0)
    for variable in learner.trainable_variables:
        variable.assign(np.ones(variable.shape, np.float32))
    training.train(
        learner,
        FAMILY,
        workdir,
        num_meta_steps=6,
        meta_batch_size=2,
        log_every=2,
        checkpoint_every=2,  # a row that a kill cuts in two would differ, as is documented
        validate=lambda: {"loss": float(learner.trainable_variables[0].numpy().sum())},
        validate_every=2,
    )
    return [variable.numpy() for variable in learner.trainable_variables]


def state(workdir):
    """The names of all files but TensorBoard's, and the rows of the logs without their seconds."""
    names = sorted(
        str(path.relative_to(workdir))
        for path in pathlib.Path(workdir).rglob("*")
        if training.TENSORBOARD_FOLDER not in path.parts and path.is_file()
    )
    rows = {}
    for name in (training.LOG_FILE, training.VALIDATION_FILE):
        with (workdir / name).open(newline="") as file:
            rows[name] = [{**row, "seconds": ""} for row in csv.DictReader(file)]
    return names, rows


def go_through(learner, tmp_path, every):
    expected = train(learner, tmp_path / "whole")
    names = state(tmp_path / "whole")
    for number in numbers(every):
        workdir = tmp_path / f"{number}"
        if not KILLER.kills(functools.partial(train, learner, workdir), workdir, number):
            return number
        found = train(learner, workdir)
        np.testing.assert_equal(found, expected, f"killed before operation {number}")
        assert state(workdir) == names, f"killed before operation {number}"


def test_kills_before_some_file_operations(learner, tmp_path):
    assert go_through(learner, tmp_path, every=7) > 20


@pytest.mark.long
def test_kills_before_every_file_operation(learner, tmp_path):
    assert go_through(learner, tmp_path, every=1) > 20
