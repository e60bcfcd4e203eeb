"""The evaluation protocol, against numpy."""

import json

import keras
import numpy as np
import pytest
import tensorflow as tf

import amaml_tf as amaml
from amaml_tf.evaluation import Estimate, _per_episode, evaluate

FAMILY = amaml.tasks.SinusoidFamily(num_support=3, num_query=4)


def learner_that(on_failure="raise"):
    model = amaml.models.multilayer_perceptron((1,), 1, hidden_units=(4,), seed=0)
    flow = amaml.GradientFlow(
        final_time=0.2, solver=amaml.solvers.GradientDescent(0.1), on_failure=on_failure
    )
    learner = amaml.MetaLearner(model, amaml.algorithms.AdjointMAML(flow))
    learner.compile(loss=FAMILY.loss, jit_compile="off")
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
    expected = 1.96 * np.std(values, ddof=1) / np.sqrt(600)
    np.testing.assert_allclose(estimate.half_width, expected, rtol=1e-4)


def test_intervals_hold_the_truth_as_often_as_they_promise():
    samples = np.random.default_rng(0).exponential(1.0, (2000, 600))
    estimates = [Estimate.of(sample) for sample in samples]
    hits = np.mean([abs(each.mean - 1.0) < each.half_width for each in estimates])
    assert abs(hits - 0.95) < 0.015  # three standard errors of a share of 2,000


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
    np.testing.assert_allclose(_per_episode([metric])(labels, logits)["accuracy"], [0.75, 0.25])


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
