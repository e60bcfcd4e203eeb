"""`--checkpoint=best|newest|N` and `--replay_episode=N`: what each is about, and mistakes."""

import csv
import json
import re
import sys

import numpy as np
import pytest
from absl import flags
from absl.testing import flagsaver

import amaml_tf as amaml
from amaml_tf.commands import evaluate, train
from amaml_tf.experiment import Experiment
from amaml_tf.training import restore

FLAGS = (
    "--num_support=3",
    "--num_query=3",
    "--hidden_units=2",
    "--algorithm=maml",
    "--step_size=0.1",
    "--num_steps=1",
    "--meta_batch_size=2",
    "--meta_learning_rate=0.5",  # so that the best is not the last
    "--num_meta_steps=6",
    "--checkpoint_every=1",
    "--validate_every=2",
    "--num_validation_episodes=2",
    "--num_eval_episodes=4",
    "--jit_compile=off",
)


def call(module, *arguments):
    """Runs a command in this process; returns its exit status, or its last words."""
    with flagsaver.flagsaver(), pytest.MonkeyPatch.context() as patch:
        flags.FLAGS.unparse_flags()
        patch.setattr(sys, "argv", ["amaml", *map(str, arguments)])
        with pytest.raises(SystemExit) as ending:
            module.run()
    return ending.value.code


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run") / "mine"
    assert call(train, *FLAGS, f"--workdir={folder}") is None
    return folder


def losses(workdir):
    with (workdir / "validation.csv").open(newline="") as file:
        return {int(row["step"]): float(row["loss"]) for row in csv.DictReader(file)}


def evaluated(workdir, which):
    assert call(evaluate, f"--workdir={workdir}", f"--checkpoint={which}") is None
    name = "evaluation.json" if which == "newest" else f"evaluation_{which}.json"
    return json.loads((workdir / name).read_text())


def test_the_best_is_that_of_the_lowest_validation_loss(workdir):
    found = losses(workdir)
    assert set(found) == {2, 4, 6}
    assert evaluated(workdir, "best")["meta_step"] == min(found, key=found.__getitem__)


def test_one_by_its_number_has_the_weights_of_that_meta_step(workdir):
    newest = json.loads((workdir / "evaluation.json").read_text())
    assert evaluated(workdir, "6") | {"settings": None} == newest | {"settings": None}
    fifth = evaluated(workdir, "5")
    assert fifth["meta_step"] == 5
    assert fifth["before"] != newest["before"]


def test_the_newest_is_the_default(workdir):
    assert evaluated(workdir, "newest")["meta_step"] == 6


@pytest.mark.parametrize(
    ("which", "words"),
    [
        ("7", r"Expected a checkpoint of meta-step 7 in .*, got those of .*5, 6; pass one of"),
        ("last", "Expected checkpoint to be newest, best or the number of a meta-step, got 'last'"),
        ("-1", "Expected checkpoint to be newest, best or the number of a meta-step, got '-1'"),
        ("", "Expected checkpoint to be newest, best or the number of a meta-step, got ''"),
        ("../../1", "Expected checkpoint to be newest, best or the number of a meta-step, got"),
        ("1" * 30, "Expected checkpoint to be newest, best or the number of a meta-step, got"),
    ],
)
def test_others_are_refused(workdir, which, words):
    before = sorted(workdir.iterdir())
    assert re.search(words, str(call(evaluate, f"--workdir={workdir}", f"--checkpoint={which}")))
    assert sorted(workdir.iterdir()) == before


def test_the_best_of_a_run_without_validations(workdir, tmp_path):
    Experiment().write(tmp_path)
    (tmp_path / "checkpoints").symlink_to(workdir / "checkpoints")
    words = call(evaluate, f"--workdir={tmp_path}", "--checkpoint=best")
    assert re.search("Expected validations in .*, got none .*; train with --validate_every", words)


def test_a_replay_tells_what_is_in_an_episode_and_changes_nothing(workdir, capsys):
    before = {path: path.read_bytes() for path in workdir.rglob("*") if path.is_file()}
    assert call(train, *FLAGS, f"--workdir={workdir}", "--replay_episode=5") is None
    told = capsys.readouterr().out
    assert {path: path.read_bytes() for path in workdir.rglob("*") if path.is_file()} == before
    experiment = Experiment.read(workdir)
    family = experiment.make_family()
    learner = experiment.make_learner(family)
    restore(learner, workdir)
    third = next(iter(family.episodes("train", batch_size=2, start=2)))  # episodes 4 and 5
    x = third[0][0][1].numpy()
    assert f"support x  shape (3, 1), from {x.min():.6g} to {x.max():.6g}, 0 not finite" in told
    before, after = learner.predict_episodes(third).before[0], learner.predict_episodes(third).after
    words = r"Episode 5 after meta-step 6: query loss (.*) before adaptation, (.*) after; norm of"
    numbers = re.findall(words, told)[0]
    np.testing.assert_allclose([float(n) for n in numbers], [before[1], after[0][1]], rtol=1e-4)


def bad_family(kind):
    """A family whose episode 5 is bad."""

    def episodes(split, rng):
        for number in range(8):
            x = rng.normal(size=(3, 1))
            y = np.full_like(x, np.nan) if (kind, number) == ("nan", 5) else x
            yield (x, y[:2] if (kind, number) == ("shape", 5) else y), (x, x)

    return amaml.tasks.from_function(episodes)


@pytest.mark.parametrize(
    ("kind", "number", "words"),
    [
        ("nan", 5, "Adaptation failed .*NaN"),
        ("shape", 5, r"Expected .* of shape \(3, 1\).*, got \(2, 1\).* \(It is episode 5 of the"),
        ("none", 9, "Expected a training episode of number 9, got fewer; pass a smaller"),
    ],
)
def test_a_replay_of_a_bad_episode(tmp_path, monkeypatch, capsys, kind, number, words):
    monkeypatch.setattr(Experiment, "make_family", lambda _: bad_family(kind))
    ended = call(train, *FLAGS, f"--workdir={tmp_path}", f"--replay_episode={number}")
    assert re.search(words, str(ended))
    assert "\n" not in str(ended)
    if kind == "nan":
        assert "support y  shape (3, 1), from nan to nan, 3 not finite" in capsys.readouterr().out


def test_a_mistake_late_in_a_generator_is_told_as_it_was_made(tmp_path, monkeypatch):
    monkeypatch.setattr(Experiment, "make_family", lambda _: bad_family("shape"))
    words = str(call(train, *FLAGS, f"--workdir={tmp_path}"))
    assert re.fullmatch(
        r"amaml: Expected .*got \(2, 1\).* \(It is episode 5 of the split\.\)", words
    )
