"""What an export says of itself, and what the command needs to write one."""

import json
import shutil
from typing import Any

import pytest
from small_data import data_of

from amaml_tf.commands import export
from amaml_tf.evaluation import Estimate
from amaml_tf.evaluation.results import Evaluation
from amaml_tf.experiment import Experiment
from amaml_tf.experiment.task_file import stored_task, write_task
from amaml_tf.saved_model import describe, read_contract
from amaml_tf.saved_model.contract import _NAMES, write_contract
from amaml_tf.training import Checkpoints

RATINGS = {"task": "ratings_csv", "num_factors": 2, "num_support": 4, "num_query": 3}


def call(monkeypatch, *arguments):
    """Runs the command in this process; returns its exit status, or its last words."""
    monkeypatch.setattr("sys.argv", ["amaml-export", *arguments])
    with pytest.raises(SystemExit) as ending:
        export.run()
    return ending.value.code


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The folder of a run, as if it were trained and evaluated; its data set is gone."""
    folder = tmp_path_factory.mktemp("run")
    data = folder / "data"
    data.mkdir()
    settings = {**RATINGS, **data_of("ratings_csv", data)}
    experiment = Experiment(
        **settings, algorithm="maml", step_size=0.05, num_steps=3, hidden_units=(4,)
    )
    experiment.write(folder)
    family = experiment.make_family()
    write_task(family, folder)
    learner = experiment.make_learner(family)
    Checkpoints(learner, folder).save()
    measures = {"rmse": Estimate(0.5, 0.1)}
    evaluation = Evaluation(20, 0, None, measures, measures, Estimate(3, 0), "time", [], 3)
    evaluation.write(folder / "evaluation.json", meta_step=0, settings=experiment.__dict__)
    shutil.rmtree(data)
    return folder


def test_says_what_it_is_without_the_data_set(trained, monkeypatch, new_flags, tmp_path, capsys):
    """E14, E16: the folder of the run is enough, and the export says where it comes from."""
    assert call(monkeypatch, f"--workdir={trained}", f"--export_dir={tmp_path}") is None
    contract = read_contract(tmp_path)
    assert contract["algorithm"] == "MAML"
    assert contract["task"] == "ratings_csv"
    assert contract["final_time"] == pytest.approx(0.15)
    assert contract["solver"] == {"name": "GradientDescent", "step_size": 0.05}
    assert contract["settings"]["num_steps"] == 3
    assert contract["meta_step"] == 0
    assert contract["inputs"] == {"x": {"dtype": "string", "shape": [None]}}
    assert contract["units"]["inputs"]["kind"] == "lookup"
    assert contract["bounds"]["max_support_rows"] == 40
    assert contract["bounds"]["max_query_rows"] == 1000
    assert contract["bounds"]["max_gradient_evaluations"] == 3
    assert contract["evaluation"]["after"]["rmse"] == {"mean": 0.5, "half_width": 0.1}
    assert "TensorFlow 2." in contract["versions"]
    batched = {n for n, each in contract["signatures"].items() if each["may_be_batched"]}
    several = {"adapt_and_predict_batch", "adapt_and_predict_timed_batch"}
    assert batched == {"serving_default", *several}
    parameters = [each["name"] for each in contract["parameters"]]
    assert parameters == sorted(set(contract["signatures"]["predict_with"]["inputs"]) - {"x"})
    # The model card says it in words.
    card = (tmp_path / "1" / "assets.extra" / "README.md").read_text()
    assert card == describe(tmp_path)
    for words in ("ratings_csv", "MAML", "GradientDescent", "identifiers of items", "0.5 ± 0.1"):
        assert words in card
    assert (
        "At most 40 support rows of a task, 1000 rows to predict for, 3 gradient evaluations of an "
        "adaptation, a `final_time` of 0.15, and 32 tasks" in card
    )
    json.dumps(contract, allow_nan=False)


def test_numbers_that_json_does_not_have(tmp_path):
    """Of an evaluation in which a task failed: the file is JSON for programs of any language."""
    estimates = {"rmse": {"mean": float("nan"), "half_width": float("inf")}}
    evaluation = {"num_episodes": 3, "before": estimates, "after": estimates}
    contract = dict.fromkeys(_NAMES, None) | {
        "format": 1,
        "final_time": 1.0,
        "class_names": [],
        "bounds": {
            **dict.fromkeys(("max_support_rows", "max_query_rows", "max_tasks"), 1),
            **{"max_gradient_evaluations": 1, "max_final_time": None},
        },
        "signatures": {},
        "parameters": [],
        "evaluation": evaluation,
    }
    (tmp_path / "assets.extra").mkdir()
    write_contract(tmp_path, contract)
    (tmp_path / "saved_model.pb").touch()
    assert read_contract(tmp_path)["evaluation"]["after"]["rmse"]["mean"] is None
    assert "| rmse | not finite | not finite |" in describe(tmp_path)


@pytest.mark.parametrize("task", ["topics", "sinusoid"])
def test_a_run_keeps_how_many_tokens_its_tasks_have(tmp_path, task):
    """E14: the network of a run on other than the default number of tokens can be made again."""
    tokens = {"model": "transformer", "width": 4, "num_heads": 1, "num_blocks": 1}
    settings: dict[str, Any] = {**tokens, "vocabulary_size": 50} if task == "topics" else {}
    experiment = Experiment(task=task, **settings)
    family = experiment.make_family()
    write_task(family, tmp_path)
    stored: Any = stored_task(tmp_path)
    models = [experiment.make_model(each) for each in (family, stored)]
    expected, found = ([v.shape for v in model.trainable_variables] for model in models)
    assert found == expected
    assert getattr(stored, "vocabulary_size", None) == getattr(family, "vocabulary_size", None)


def test_the_command_describes_an_export(trained, monkeypatch, new_flags, tmp_path, capsys):
    flags = ("--noraw_units", "--max_support_rows=7", "--keep_versions=1")
    assert call(monkeypatch, f"--workdir={trained}", f"--export_dir={tmp_path}", *flags) is None
    new_flags.unparse_flags()
    capsys.readouterr()
    assert call(monkeypatch, f"--describe={tmp_path}") is None
    described = capsys.readouterr().out
    assert "At most 7 support rows" in described
    assert "in the network's own units" in described
    assert read_contract(tmp_path)["inputs"]["x"] == {"dtype": "float32", "shape": [None, 4]}


def test_what_has_no_contract_is_told(tmp_path):
    (tmp_path / "1").mkdir()
    (tmp_path / "1" / "saved_model.pb").touch()
    with pytest.raises(FileNotFoundError, match="an export with a contract"):
        read_contract(tmp_path)


@pytest.mark.parametrize(
    ("percentile", "changed", "bound"),
    [(47, {}, 470), (None, {}, 333), (47, {"final_time": 9.0}, 10_000)],
)
def test_bounds_follow_from_what_the_run_took(tmp_path, percentile, changed, bound):
    experiment = Experiment(task="sinusoid", final_time=1.0, hidden_units=(4,))
    measures = {"loss": Estimate(0.5, 0.1)}
    took = Estimate(40.0, 0.0)
    evaluation = Evaluation(20, 0, None, measures, measures, took, "time", [], percentile)
    evaluation.write(tmp_path / "evaluation.json", meta_step=0, settings=experiment.__dict__)
    (tmp_path / "log.csv").write_text("step,gradient_evaluations\n1,20.5\n2,33.25\n")
    family = experiment.make_family()
    learner = Experiment(**{**experiment.__dict__, **changed}).make_learner(family)
    asked = Experiment(**{**experiment.__dict__, **changed})
    evaluations = export._evaluations(experiment, asked, tmp_path)
    bounds = export._bounds(learner, family, evaluations)
    assert bounds.max_gradient_evaluations == bound
    assert bounds.max_support_rows == 100
