"""`amaml-evaluate` and `amaml-export`, killed before any file operation, go on to the same end."""

import dataclasses
import functools
import json
import shutil
import sys

import numpy as np
import pytest
from absl import flags
from absl.testing import flagsaver
from killing import KILLER, numbers

import amaml_tf as amaml
from amaml_tf.commands import evaluate, export
from amaml_tf.evaluation import Evaluation
from amaml_tf.experiment import Experiment
from amaml_tf.experiment.task_file import write_task
from amaml_tf.training import Checkpoints

SETTINGS = Experiment(
    num_support=3,
    num_query=3,
    hidden_units=(2,),
    solver="gradient_descent",
    step_size=0.1,
    final_time=0.2,
    num_eval_episodes=2,
    eval_batch_size=2,
    eval_times=(0.1, 0.2),  # so that there is a figure as well
    jit_compile="off",
)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The folder of a run that has only its settings and a checkpoint, and the learner of it."""
    folder = tmp_path_factory.mktemp("trained")
    SETTINGS.write(folder)
    family = SETTINGS.make_family()
    write_task(family, folder)
    learner = SETTINGS.make_learner(family)
    learner.optimizer.build(learner.trainable_variables)
    learner.optimizer.iterations.assign(1)
    Checkpoints(learner, folder).save()
    return folder, learner


def call(module, folder):
    """Runs a command in this process."""
    with flagsaver.flagsaver(), pytest.MonkeyPatch.context() as patch:
        flags.FLAGS.unparse_flags()
        patch.setattr(sys, "argv", ["amaml", f"--workdir={folder}"])
        with pytest.raises(SystemExit) as ending:
            module.run()
    assert ending.value.code is None


def names(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def go_through(module, trained, tmp_path, every, state):
    """Kills the command, calls it again, and compares what is then there with an undisturbed run.

    Returns:
        The number of operations that there are.
    """
    shutil.copytree(trained, tmp_path / "whole")
    call(module, tmp_path / "whole")
    expected = names(tmp_path / "whole"), state(tmp_path / "whole")
    for number in numbers(every):
        workdir = tmp_path / f"{number}"
        shutil.copytree(trained, workdir)
        if not KILLER.kills(functools.partial(call, module, workdir), workdir, number):
            return number
        call(module, workdir)
        assert (names(workdir), state(workdir)) == expected, f"killed before operation {number}"


def numbers_of_evaluation(folder):
    values = json.loads((folder / "evaluation.json").read_text())
    return values, (folder / "evaluation.csv").read_text()


def test_evaluate(trained, tmp_path, monkeypatch):
    folder, learner = trained
    evaluation = SETTINGS.measure(
        SETTINGS.make_evaluator(learner, SETTINGS.make_family()), SETTINGS.make_family()
    )
    # Measuring writes nothing, and takes nearly all of the time.
    monkeypatch.setattr(Experiment, "measure", lambda *_: dataclasses.replace(evaluation))
    assert isinstance(evaluation, Evaluation)
    assert go_through(evaluate, folder, tmp_path, 1, numbers_of_evaluation) > 5


def answers(folder):
    model = amaml.load_initialization(folder / "export")
    return model(np.ones((3, 1), np.float32)).numpy().tolist()


def export_is_resumed(trained, tmp_path, every):
    return go_through(export, trained[0], tmp_path, every, answers)


@pytest.mark.long
def test_export(trained, tmp_path):
    assert export_is_resumed(trained, tmp_path, every=3) > 5
