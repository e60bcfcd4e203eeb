"""The evaluation protocol, against numpy."""

import csv
import json
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

import amaml_tf as amaml
from amaml_tf.commands.reporting import report_evaluation
from amaml_tf.evaluation import Estimate, Evaluator, evaluate
from amaml_tf.experiment import Experiment
from amaml_tf.learner.task_metrics import TaskMetrics
from amaml_tf.tasks.ratings import ratings_family as ratings

FAMILY = amaml.tasks.SinusoidFamily(num_support=3, num_query=4)


def learner_that(on_failure="raise", **learned):
    model = amaml.models.multilayer_perceptron((1,), 1, hidden_units=(4,), seed=0)
    flow = amaml.GradientFlow(
        final_time=0.2, solver=amaml.solvers.GradientDescent(0.1, max_num_steps=99)
    )
    learner = amaml.MetaLearner(model, amaml.algorithms.AdjointMAML(flow, **learned))
    learner.compile(loss=FAMILY.loss, jit_compile="off", on_failure=on_failure)
    return learner


@pytest.fixture(scope="module")
def learner():
    return learner_that()


def episodes(num_batches=3, batch_size=5):
    return FAMILY.episodes("test", batch_size=batch_size, num_batches=num_batches)


def test_the_interval_is_that_of_the_mean():
    values = np.random.default_rng(0).normal(3.0, 2.0, 600)
    estimate = Estimate.of(values)
    np.testing.assert_allclose(estimate.mean, np.mean(values), rtol=1e-12)
    expected = 1.963932 * np.std(values, ddof=1) / np.sqrt(600)
    np.testing.assert_allclose(estimate.half_width, expected, rtol=1e-4)


def test_intervals_hold_the_truth_as_often_as_they_promise():
    samples = np.random.default_rng(0).exponential(1.0, (2000, 600))
    estimates = [Estimate.of(sample) for sample in samples]
    hits = np.mean([abs(each.mean - 1.0) < each.half_width for each in estimates])
    assert abs(hits - 0.95) < 0.015  # three standard errors of a share of 2,000


def test_intervals_of_few_values_hold_the_truth_as_often_too():
    samples = np.random.default_rng(0).normal(1.0, 1.0, (2000, 5))
    estimates = [Estimate.of(sample) for sample in samples]
    hits = np.mean([abs(each.mean - 1.0) < each.half_width for each in estimates])
    assert abs(hits - 0.95) < 0.015


def test_one_value_has_no_interval():
    with pytest.raises(ValueError, match=r"Expected the values of 2 or more episodes.*got 1"):
        Estimate.of([1.0])


@pytest.mark.parametrize(
    ("estimate", "text"),
    [
        (Estimate(0.95774, 0.00361), "0.9577 ± 0.0036"),
        (Estimate(111.0417, 12.9), "111 ± 13"),
        (Estimate(0.00015678, 0.0000123), "0.000157 ± 0.000012"),
        (Estimate(3.0, 0.0), "3 ± 0"),
    ],
)
def test_numbers_are_shown_as_precisely_as_they_are_known(estimate, text):
    assert str(estimate) == text


def test_every_episode_counts_alike(learner):
    evaluation = evaluate(learner, episodes(), 15, FAMILY.metrics())
    errors: dict[str, list[float]] = {"before": [], "after": []}
    for batch in episodes():
        predictions = learner.predict_episodes(batch)
        for when, all_errors in errors.items():
            residuals = getattr(predictions, when)[1] - batch[1][1]
            all_errors.extend(np.mean(np.square(residuals), axis=(1, 2)))
    for when, all_errors in errors.items():
        estimates = getattr(evaluation, when)
        for name, values in (("loss", all_errors), ("rmse", np.sqrt(all_errors))):
            expected = Estimate.of(values)
            np.testing.assert_allclose(estimates[name].mean, expected.mean, rtol=1e-5)
            np.testing.assert_allclose(estimates[name].half_width, expected.half_width, rtol=1e-4)
    assert evaluation.num_episodes == 15
    assert evaluation.gradient_evaluations == Estimate(2.0, 0.0)


def test_classification_is_measured_episode_by_episode():
    labels = tf.constant([[0, 1, 2, 0], [1, 1, 0, 2]])
    logits = tf.one_hot([[0, 1, 1, 0], [0, 1, 2, 1]], 3)
    metric = keras.metrics.SparseCategoricalAccuracy(name="accuracy")
    np.testing.assert_allclose(TaskMetrics([metric])(labels, logits)["accuracy"], [0.75, 0.25])


def test_evaluation_repeats_itself(learner):
    first, second = (evaluate(learner, episodes(), 15, FAMILY.metrics()) for _ in range(2))
    assert first == second


def test_the_size_of_batches_does_not_matter(learner):
    expected = evaluate(learner, episodes(), 13)
    other = evaluate(learner, episodes(num_batches=2, batch_size=10), 13)
    assert other.num_episodes == expected.num_episodes == 13
    np.testing.assert_allclose(other.after["loss"].mean, expected.after["loss"].mean, rtol=1e-5)


def test_too_few_episodes(learner):
    with pytest.raises(ValueError, match="Expected 16 episodes to evaluate on, got 15; give more"):
        evaluate(learner, episodes(), 16)


def test_failed_episodes_are_counted_and_left_out():
    x = np.ones((3, 1), np.float32)

    def with_one_bad_task(split, rng):
        numbers = iter([np.nan, 1.0, 1.0, 1.0])
        while True:
            yield (x, x * next(numbers)), (x, x)

    family = amaml.tasks.from_function(with_one_bad_task)
    batches = family.episodes("test", batch_size=4, num_batches=1)
    evaluation = evaluate(learner_that(on_failure="drop"), batches, 4, FAMILY.metrics())
    assert (evaluation.num_episodes, evaluation.num_failed_episodes) == (3, 1)
    assert np.isfinite(evaluation.after["rmse"].mean)
    assert "failed" in evaluation.table()


def test_the_table_and_the_file_say_the_same(learner, tmp_path):
    evaluation = evaluate(learner, episodes(), 15, FAMILY.metrics())
    evaluation.write(tmp_path / "evaluation.json", meta_step=7)
    written = json.loads((tmp_path / "evaluation.json").read_text())
    assert written["meta_step"] == 7
    assert written["num_episodes"] == 15
    assert written["confidence"] == 0.95
    rmse = written["after"]["rmse"]
    assert str(Estimate(**rmse)) in evaluation.table()


def test_a_curve_begins_before_adaptation_and_ends_after_it(learner):
    plain = evaluate(learner, episodes(), 15, FAMILY.metrics())
    assert [point.at for point in plain.curve] == [0, 0.2]
    along = evaluate(learner, episodes(), 15, FAMILY.metrics(), times=(0.1, 0.2))
    assert (along.unit, [point.at for point in along.curve]) == ("time", [0, 0.1, 0.2])
    assert along.curve[0].measures == along.before == plain.before
    assert along.curve[-1].measures == along.after
    values = along.curve[-1].values["loss"]
    assert len(values) == along.num_episodes
    assert Estimate.of(values) == along.after["loss"]
    for name, estimate in plain.after.items():
        np.testing.assert_allclose(along.after[name].mean, estimate.mean, rtol=1e-6)
    assert along.gradient_evaluations == plain.gradient_evaluations
    shorter = evaluate(learner, episodes(), 15, FAMILY.metrics(), times=(0.1,))
    assert shorter.after == along.curve[1].measures


def test_a_curve_goes_further_than_the_final_time(learner):
    along = evaluate(learner, episodes(), 15, times=(0.3, 1.2))
    assert along.gradient_evaluations == Estimate(12.0, 0.0)
    assert along.num_failed_episodes == 0


def test_a_flow_solved_from_time_to_time_pulls_to_the_initialization():
    model = amaml.models.multilayer_perceptron((1,), 1, hidden_units=(4,), seed=0)
    flow = amaml.GradientFlow(
        final_time=1.0, solver=amaml.solvers.GradientDescent(0.1), proximal_weight=3.0
    )
    learner = amaml.MetaLearner(model, amaml.algorithms.AdjointMAML(flow))
    learner.compile(loss=FAMILY.loss, jit_compile="off")
    whole = evaluate(learner, episodes(), 15)
    along = evaluate(learner, episodes(), 15, times=(0.2, 0.5, 1.0))
    np.testing.assert_allclose(along.after["loss"].mean, whole.after["loss"].mean, rtol=1e-5)


def test_a_curve_along_the_steps_of_an_optimizer(learner, tmp_path):
    sgd = keras.optimizers.SGD(0.1)
    evaluation = evaluate(learner, episodes(), 15, FAMILY.metrics(), optimizer=sgd, steps=(0, 2, 1))
    flow = evaluate(learner, episodes(), 15, FAMILY.metrics())
    assert (evaluation.unit, [point.at for point in evaluation.curve]) == ("step", [0, 1, 2])
    assert evaluation.before == flow.before
    assert evaluation.gradient_evaluations == flow.gradient_evaluations
    np.testing.assert_allclose(evaluation.after["rmse"].mean, flow.after["rmse"].mean, rtol=1e-5)
    evaluation.write(tmp_path / "evaluation.json")
    with open(tmp_path / "evaluation.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["step"], row["metric"]) for row in rows] == [
        (step, name) for step in "012" for name in ("loss", "rmse")
    ]
    last = evaluation.after["rmse"]
    assert (float(rows[-1]["mean"]), float(rows[-1]["half_width"])) == (last.mean, last.half_width)
    written = json.loads((tmp_path / "evaluation.json").read_text())["curve"]
    assert [point["step"] for point in written] == [0, 1, 2]
    assert Estimate(**written[-1]["rmse"]) == last
    assert str(evaluation.curve[1].measures["rmse"]) in evaluation.table()


@pytest.mark.parametrize(
    "how",
    [{}, {"times": (0.1, 0.2)}, {"optimizer": keras.optimizers.Adam(0.1), "steps": (1, 5)}],
    ids=["own run", "times", "steps"],
)
def test_an_evaluator_measures_what_the_learner_is_by_then(how):
    learner = learner_that(learn_final_time=True)
    evaluator = Evaluator(learner, FAMILY.metrics(), **how)
    first = evaluator(episodes(), 15)
    assert evaluator(episodes(), 15) == first
    for variable in [*learner.model.trainable_variables, *learner.algorithm.variables]:
        variable.assign(variable + 0.1)
    second = evaluator(episodes(), 15)
    assert second != first
    assert second == evaluate(learner, episodes(), 15, FAMILY.metrics(), **how)


@pytest.mark.parametrize(
    ("asked", "sentence"),
    [
        ({"steps": (1,)}, "Expected times, or an optimizer and its steps, .* got steps; leave"),
        ({"optimizer": "adam"}, "got optimizer; leave"),
        ({"times": (1,), "optimizer": "adam", "steps": (1,)}, "got times and optimizer and steps"),
        ({"times": (-1.0, 2.0)}, r"Expected times of 0 or more, .* got \(-1.0, 2.0\); pass"),
        ({"optimizer": "adam", "steps": (0,)}, r"Expected steps of 0 or more, .* got \(0,\); pass"),
        ({"task_indices": np.arange(3)}, "Expected the task_indices of 15 episodes, got 3; give"),
        ({"times": ()}, r"Expected times of 0 or more, .* got \(\); pass"),
    ],
)
def test_what_cannot_be_asked_for(learner, asked, sentence):
    if "optimizer" in asked:
        asked = asked | {"optimizer": keras.optimizers.get(asked["optimizer"])}
    with pytest.raises(ValueError, match=sentence):
        evaluate(learner, episodes(), 15, **asked)


def test_visits_to_one_task_are_one_value(learner):
    once = evaluate(learner, episodes(num_batches=1), 5, FAMILY.metrics())
    thrice = episodes(num_batches=1).repeat(3)
    visits = evaluate(learner, thrice, 15, FAMILY.metrics(), task_indices=np.tile(range(5), 3))
    assert (visits.num_episodes, visits.num_tasks) == (15, 5)
    for name, estimate in once.after.items():
        np.testing.assert_allclose(visits.after[name].mean, estimate.mean, rtol=1e-6)
        np.testing.assert_allclose(visits.after[name].half_width, estimate.half_width, rtol=1e-5)
    assert "15 episodes, 5 tasks" in visits.table()


def test_families_tell_which_task_an_episode_is_of():
    family = amaml.tasks.AlpineFamily(num_support=2, num_query=2, num_tasks=3)
    indices = family.task_indices("test", seed=1, count=8)
    assert indices is not None
    assert [sorted(indices[:3]), sorted(indices[3:6])] == [[0, 1, 2], [0, 1, 2]]
    (batch,) = family.episodes("test", seed=1, batch_size=8, num_batches=1)
    for index, x, y in zip(indices, *batch[0], strict=True):
        inputs = tf.cast(x, tf.float64) * family.input_scale + family.input_mean
        truth = family.function(inputs, family.parameters("test", index))
        expected = (truth - family.target_mean) / family.target_scale
        np.testing.assert_allclose(y, expected, rtol=1e-3, atol=1e-4)
    assert FAMILY.task_indices("test", count=8) is None
    assert family.num_different_episodes("test") is None


# -- settings of the commands ------------------------------------------------------------------

TINY: dict[str, Any] = {
    "hidden_units": (3,),
    "num_support": 2,
    "num_query": 2,
    "jit_compile": "off",
}


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        (
            {"eval_steps": (10,)},
            "Expected an eval_optimizer with eval_steps=10, got none; pass --e",
        ),
        ({"eval_learning_rate": 0.1}, "an eval_optimizer with eval_learning_rate=0.1, got none"),
        ({"eval_optimizer": "sgd"}, "Expected eval_steps with eval_optimizer=sgd, got none; pass"),
        (
            {"eval_optimizer": "sgd", "eval_steps": (1,), "eval_times": (1.0,)},
            "Expected eval_steps with eval_optimizer=sgd, got eval_times; pass",
        ),
        ({"eval_times": (-1.0, 2.0)}, "Expected eval_times of 0 or more, .* got -1.0,2.0; pass"),
        ({"eval_learning_rate": 0.0}, "Expected eval_learning_rate to be above 0, got 0.0; pass"),
        ({"eval_weight_decay": -1.0}, "Expected eval_weight_decay of 0 or more, got -1.0; pass"),
        (
            {"eval_all_layers": True},
            "Expected an eval_optimizer with eval_all_layers=True, got none",
        ),
        ({"eval_optimizer": "muon", "eval_steps": (1,)}, "treats every parameter apart .* Muon"),
        ({"eval_optimizer": "magic", "eval_steps": (1,)}, "Expected eval_optimizer to be the name"),
    ],
)
def test_settings_that_do_not_fit(settings, sentence):
    with pytest.raises(ValueError, match=sentence):
        Experiment(**settings).make_eval_optimizer()


def test_the_commands_draw_a_curve_along_an_optimizer(tmp_path, capsys):
    settings = Experiment(
        task="alpine",
        **TINY,
        num_tasks=3,
        num_eval_episodes=7,
        eval_batch_size=4,
        eval_optimizer="adamw",
        eval_learning_rate=0.5,
        eval_weight_decay=0.25,
        eval_steps=(1, 2),
        eval_all_layers=True,
    )
    optimizer = settings.make_eval_optimizer()
    assert optimizer is not None
    assert (float(optimizer.learning_rate), optimizer.weight_decay) == (0.5, 0.25)
    family = settings.make_family()
    learner = settings.make_learner(family)
    path = tmp_path / "evaluation.json"
    evaluation = report_evaluation(settings, family, learner, 0, path)
    assert (evaluation.num_episodes, evaluation.num_tasks) == (7, 3)
    assert "7 episodes, 3 tasks" in capsys.readouterr().out
    written = sorted(each.name for each in tmp_path.iterdir())
    assert written == ["evaluation.csv", "evaluation.json", "evaluation.png"]


@pytest.mark.long
def test_the_commands_evaluate_a_user_once(tmp_path):
    users, items = np.divmod(np.arange(200), 8)
    values = np.random.default_rng(0).integers(1, 6, 200)
    family = ratings.RatingsFamily(
        ratings.Ratings(users, items, values.astype(float), items),
        num_support=2,
        num_query=2,
        num_factors=2,
    )
    settings = Experiment(**TINY, final_time=0.1, num_eval_episodes=600)
    learner = settings.make_learner(family)
    path = tmp_path / "evaluation.json"
    evaluation = report_evaluation(settings, family, learner, 0, path)
    assert evaluation.num_episodes == evaluation.num_tasks == family.num_tasks("test") == 5
    assert not path.with_suffix(".png").exists()
