"""The comparison of algorithms: search, final runs, table, and going on where it was stopped."""

import csv
import dataclasses
import json
import math
import re
import sys

import numpy as np
import project
import pytest
from absl.testing import flagsaver

from amaml_tf.commands import compare
from amaml_tf.commands import flags as experiment_flags
from amaml_tf.comparison import methods, runs
from amaml_tf.comparison.clock import Clock
from amaml_tf.comparison.comparison import Comparison
from amaml_tf.comparison.outcome import Outcome, Spread, stopped
from amaml_tf.comparison.paired import differences
from amaml_tf.comparison.plan import Plan
from amaml_tf.errors import UsageError
from amaml_tf.evaluation import Estimate
from amaml_tf.experiment import Experiment

CONFIGS = project.ROOT / "configs" / "compare"
TINY = (
    "--task=sinusoid",
    "--num_support=3",
    "--num_query=3",
    "--hidden_units=4",
    "--meta_batch_size=2",
    "--log_every=2",
    "--num_meta_steps=4",
    "--decay_steps=4",
    "--search_meta_steps=2",
    "--num_eval_episodes=4",
    "--eval_batch_size=4",
    "--jit_compile=off",
    "--seeds=0,1",
    "--curve_points=1",
    "--num_curve_episodes=4",
    "--method=Plain MAML: algorithm=maml,num_steps=1,search.step_size=0.1|1e30",
    "--method=Reptile: algorithm=reptile,num_steps=1,step_size=0.1",
)

SMALL = Experiment(
    num_support=3,
    num_query=3,
    hidden_units=(4,),
    algorithm="reptile",
    num_steps=1,
    jit_compile="off",
    log_every=2,
    num_eval_episodes=4,
)


@pytest.fixture
def call(monkeypatch, new_flags):
    """Runs the comparison in this process; returns its exit status, or its last words."""

    def called(*arguments):
        monkeypatch.setattr(sys, "argv", ["compare", *map(str, arguments)])
        with flagsaver.flagsaver(), pytest.raises(SystemExit) as ending:
            compare.run()
        return ending.value.code

    return called


@pytest.mark.long
def test_compares_and_does_nothing_twice(call, tmp_path, monkeypatch, capsys):
    assert call(*TINY, f"--output={tmp_path}") is None
    table = (tmp_path / "table.md").read_text()
    assert "| Plain MAML |" in table
    assert "step_size=0.1 |" in table  # chosen, because the other candidate failed
    assert re.search(r"step_size=1e\+30 \| failed: \S+", table)
    assert str(tmp_path) not in table
    rows = [line.split(" | ") for line in table.splitlines()[2:4]]
    to_best = sorted(row[4] for row in rows)
    assert to_best[1] == "best"
    assert re.fullmatch(r"\+[\d.e-]+ ± [\d.e-]+", to_best[0])
    found = json.loads((tmp_path / "results.json").read_text())
    assert [each["label"] for each in found["methods"]] == ["Plain MAML", "Reptile"]
    assert found["methods"][0]["runs"]["1"]["meta_steps"] == 4
    assert [len(each["candidates"]) for each in found["methods"]] == [2, 0]
    for folder, steps in (
        ("search/Plain_MAML/candidate_0", 2),
        ("runs/Plain_MAML/candidate_0/seed_1", 4),
    ):
        settings = json.loads((tmp_path / folder / "result.json").read_text())["run"]["settings"]
        assert (settings["num_meta_steps"], settings["decay_steps"]) == (steps, steps)
    with (tmp_path / "results.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert {row["over"] for row in rows} == {"adaptation", "training"}
    assert (tmp_path / "adaptation.png").stat().st_size > 1000
    assert (tmp_path / "training.png").stat().st_size > 1000
    assert "search: 2 runs, 2 to do" in capsys.readouterr().out

    def never(*_):
        raise AssertionError("a finished run was done again")

    monkeypatch.setattr("amaml_tf.comparison.workers.execute", never)
    assert call(*TINY, f"--output={tmp_path}") is None
    assert "final runs: 4 runs, 0 to do" in capsys.readouterr().out
    words = call(*TINY, f"--output={tmp_path}", "--num_meta_steps=5")
    assert "got other values of num_meta_steps; pass the old ones, or another --output" in words


@pytest.mark.long
def test_the_longest_runs_of_a_seed_come_first(call, tmp_path, monkeypatch, capsys):
    def seconds(self, searches, ranked):
        del self, ranked
        return 1.0 if searches else 2.0

    monkeypatch.setattr(Comparison, "_seconds", seconds)
    call(*TINY, f"--output={tmp_path}")
    lines = [line.split()[0] for line in capsys.readouterr().out.splitlines()]
    done = [line.split("/")[1::2] for line in lines if line.startswith("runs/")]
    assert done == [
        ["Reptile", "seed_0"],
        ["Plain_MAML", "seed_0"],
        ["Reptile", "seed_1"],
        ["Plain_MAML", "seed_1"],
    ]


def test_methods_are_compared_task_by_task():
    easy_and_hard = np.array([0.0, 10.0, 20.0, 30.0])
    better, worse = easy_and_hard, easy_and_hard + np.array([0.9, 1.1, 0.9, 1.1])
    to_best = differences([worse, None, better, better[:3] + 20], sign=1)
    # Student's 97.5% quantile with 3 degrees of freedom, times the deviation 0.2/√3 over √4.
    expected = 1.0, 3.182446 * (0.2 / 3**0.5) / 2
    assert dataclasses.astuple(to_best[0] or Estimate(0, 0)) == pytest.approx(expected, rel=1e-6)
    assert to_best[2] == Estimate(0, 0)
    assert to_best[1] is None
    assert to_best[3] is None
    assert differences([worse, better], sign=-1)[0] == Estimate(0, 0)  # large is good
    assert differences([None], sign=1) == [None]


@pytest.mark.long
def test_a_choice_that_diverges_in_the_end_gives_way_to_the_next(call, tmp_path, monkeypatch):
    done = runs.execute

    def failing(run, folder, kind):
        """The better candidate fails, but not in the search."""
        if run.name.startswith("runs/MAML/candidate_1"):
            result = {"run": run.identity(), "failed": "it diverged"}
            (folder / run.name).mkdir(parents=True)
            (folder / run.name / runs.RESULT_FILE).write_text(json.dumps(result))
            return result
        result = done(run, folder, kind)
        if run.name.startswith("search"):
            worse = run.settings["step_size"] == 0.1
            result["evaluation"]["after"]["rmse"]["mean"] = 2.0 if worse else 1.0
            (folder / run.name / runs.RESULT_FILE).write_text(json.dumps(result))
        return result

    monkeypatch.setattr("amaml_tf.comparison.workers.execute", failing)
    flags = [flag for flag in TINY if not flag.startswith("--method")]
    method = "--method=MAML: algorithm=maml,num_steps=1,search.step_size=0.1|0.2"
    assert call(*flags, method, f"--output={tmp_path}") is None
    table = (tmp_path / "table.md").read_text()
    assert "| 2 of 2 | step_size=0.1 |" in table
    sentence = "MAML with step_size=0.2, better in the search than what was chosen, gave way: it"
    assert sentence in table


@pytest.mark.long
def test_goes_on_from_a_checkpoint(tmp_path, monkeypatch):
    settings = dataclasses.asdict(dataclasses.replace(SMALL, num_meta_steps=8))
    run = runs.Run("run", settings, curve_points=2, num_curve_episodes=4)

    def stopped(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(runs, "measure", stopped)
        with pytest.raises(KeyboardInterrupt):
            runs.execute(run, tmp_path)
    assert runs.result_of(run, tmp_path) is None
    before = json.loads((tmp_path / "run" / "clock.json").read_text())["seconds_at"]
    assert list(before) == ["4"]
    result = runs.execute(run, tmp_path)
    assert result["meta_steps"] == 8
    assert result["seconds"] >= before["4"]
    assert [point["meta_steps"] for point in result["training_curve"]] == [4, 8]


@pytest.mark.parametrize("text", ["{", "[]", '{"first_step_seconds": 1, "seconds_at": {"x": 1}}'])
def test_a_damaged_clock_is_told(tmp_path, text):
    (tmp_path / "clock.json").write_text(text)
    with pytest.raises(UsageError, match=r"Expected the seconds of a run, got .*clock\.json"):
        Clock(tmp_path, 1)


def test_a_budget_of_seconds_ends_the_training(tmp_path):
    settings = dataclasses.asdict(dataclasses.replace(SMALL, num_meta_steps=10**6))
    run = runs.Run("run", settings, budget_seconds=0.2)
    result = runs.execute(run, tmp_path)
    assert 1 < result["meta_steps"] < 10**6
    assert 0.2 <= result["seconds"] < 2


def test_the_rate_falls_over_the_budget_of_seconds(tmp_path, monkeypatch):
    rates: list[tuple[float, float]] = []
    began = Clock.on_train_batch_begin

    def noted(clock, *arguments, **named):
        began(clock, *arguments, **named)
        rates.append((clock.seconds, float(clock.model.optimizer.learning_rate)))

    monkeypatch.setattr(Clock, "on_train_batch_begin", noted)
    settings = dataclasses.asdict(dataclasses.replace(SMALL, num_meta_steps=10**6))
    runs.execute(runs.Run("run", settings, budget_seconds=0.2, decay=True), tmp_path)
    first = SMALL.meta_learning_rate
    assert rates[0][0] == 0
    assert rates[0][1] == pytest.approx(first)
    for seconds, rate in rates:
        expected = first * (1 + math.cos(math.pi * seconds / 0.2)) / 2
        assert rate == pytest.approx(expected, rel=1e-4, abs=1e-6 * first)
    assert rates[-1][1] < 0.5 * first


def test_a_budget_of_seconds_is_that_of_the_search_too(new_flags, tmp_path):
    new_flags(["compare", *TINY, "--budget_seconds=9", "--search_budget_seconds=2"])
    found = methods.parse_methods(new_flags.method, new_flags.search)
    comparison = Comparison(
        experiment_flags.read(Experiment), found, experiment_flags.read(Plan), tmp_path
    )
    for method in found:
        for run in comparison._searches(method):
            assert (run.budget_seconds, run.decay) == (2, False)
        for run in comparison._finals(method, [0]):
            assert run.budget_seconds == 9


@pytest.mark.parametrize(
    ("flag", "sentence"),
    [
        ("--budget_seconds=-1", "Expected --budget_seconds above 0, got -1; pass"),
        ("--search_budget_seconds=1", "Expected --budget_seconds with --search_budget_seconds"),
        ("--budget_decay", "Expected --budget_seconds with --budget_decay, got none; pass"),
        ("--method=no colon", "Expected --method to be a label, a colon and settings, got"),
        ("--method=A: algorithm", "Expected NAME=VALUE in --method=A, got 'algorithm'; add"),
        ("--method=A: colour=red", "Expected the name of a setting .*, got 'colour'; --help"),
        ("--method=A: num_steps=few", "Expected a value of num_steps .*, got 'few'; see --help"),
        ("--method=Reptile: algorithm=maml", "Expected --method once or more, each with a label"),
        ("--method=A: algorithm=magic", "Expected algorithm to be one of .*, got 'magic'; use"),
        ("--search=seven", "Expected NAME=VALUE in --search, got 'seven'; add the value"),
    ],
)
def test_mistakes(call, tmp_path, flag, sentence):
    words = call(*TINY, flag, f"--output={tmp_path / 'out'}")
    assert re.match(f"compare: {sentence}", words)
    assert not (tmp_path / "out").exists()


def test_a_method_searches_what_it_does_not_set():
    (method,) = methods.parse_methods(
        ["A: step_size=0.1,rtol=,search.hidden_units=4|8+8,learn_final_time=true"],
        ["step_size=1,2", "final_time=1,5"],
    )
    assert method.settings == {"step_size": 0.1, "rtol": None, "learn_final_time": True}
    assert method.search == {"final_time": (1.0, 5.0), "hidden_units": ((4,), (8, 8))}
    assert len(method.candidates()) == 4


def test_spread():
    spread = Spread.of([{"mean": m, "half_width": 0.3} for m in (1.0, 2.0, 3.0)])
    assert (spread.mean, spread.episodes) == (2.0, pytest.approx(0.3))
    assert spread.seeds == pytest.approx(4.3027 / math.sqrt(3), rel=1e-3)
    assert math.isnan(Spread.of([{"mean": 1.0, "half_width": 0.1}]).seeds)


def test_adaptation_stops_where_validation_tasks_say():
    def evaluation(*means):
        points = enumerate(means)
        return {
            "curve": [
                {"at": i, "measures": {"rmse": {"mean": m, "half_width": 0}}} for i, m in points
            ]
        }

    results = {
        0: {"validation": evaluation(3, 1, 2), "evaluation": evaluation(5, 7, 6)},
        1: {"validation": evaluation(3, 2, 4), "evaluation": evaluation(5, 9, 6)},
        2: {"failed": "it diverged"},
    }
    found = stopped(Outcome(methods.Method("A", {}, {}), {}, [], results), "rmse")
    assert found is not None
    assert (found[0], found[1].mean) == (1, 8)


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.cfg")), ids=lambda path: path.stem)
def test_flag_files_are_valid(path, new_flags, tmp_path):
    new_flags(["compare", f"--flagfile={path}"])
    found = methods.parse_methods(new_flags.method, new_flags.search)
    Comparison(
        experiment_flags.read(Experiment), found, experiment_flags.read(Plan), tmp_path
    ).check()
