"""A number has one meaning: what `fit`, `evaluate` and `amaml.evaluate` report is the same."""

import json
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

import amaml_tf as amaml
from amaml_tf.episodes import Examples

LAYERS = keras.layers
METRICS: dict[str, Any] = {
    "names": ["mae", "mse"],
    "that are no means of examples": [
        keras.metrics.RootMeanSquaredError(name="rmse"),
        keras.metrics.R2Score(),
        keras.metrics.AUC(num_thresholds=5, name="area"),
        keras.metrics.CosineSimilarity(axis=0),
    ],
}
BY_OUTPUT: dict[str, Any] = {
    "dict": {"a": ["mae", keras.metrics.RootMeanSquaredError()], "b": "mse"},
    "list": [["mae"], [keras.metrics.BinaryAccuracy(threshold=0.3)]],
}


def examples(rng: np.random.Generator, weights: bool, count: int = 6) -> Examples:
    x, y = rng.normal(size=(4, count, 3)), rng.integers(0, 2, size=(4, count, 1))
    weight = rng.integers(1, 4, size=(4, count)) * (np.arange(count) < count - 2)
    parts = (x, y, weight) if weights else (x, y)
    return tuple(tf.constant(part, tf.float32) for part in parts)


def batch(weights: bool = False):
    rng = np.random.default_rng(0)
    return examples(rng, weights), examples(rng, weights)


def learner_of(outputs=("a",), **options):
    keras.utils.set_random_seed(0)
    inputs = keras.Input((3,))
    outs = [LAYERS.Dense(1, "sigmoid", name=name)(inputs) for name in outputs]
    model = keras.Model(inputs, outs if len(outs) > 1 else outs[0])
    learner = amaml.MetaLearner(model, amaml.algorithms.MAML(0.5, 2))
    learner.compile(keras.optimizers.SGD(0.0), "mse", jit_compile="off", **options)
    return learner


def assert_the_same(evaluation, logs):
    for name, estimate in evaluation.after.items():
        before = evaluation.before[name]
        np.testing.assert_allclose(logs[name], estimate.mean, rtol=1e-5, err_msg=name)
        np.testing.assert_allclose(logs[f"{name}_before"], before.mean, rtol=1e-5, err_msg=name)
    assert len(logs) == 2 * len(evaluation.after) + 1  # gradient_evaluations


@pytest.mark.parametrize("weights", [False, True], ids=["plain", "weights"])
@pytest.mark.parametrize("which", METRICS)
def test_the_same_name_is_the_same_number(which, weights):
    episodes, weighted = batch(weights), ["mae"] if weights else []
    learner = learner_of(metrics=METRICS[which], weighted_metrics=weighted)
    data = tf.data.Dataset.from_tensors(episodes)
    evaluation = amaml.evaluate(learner, [episodes], 4, METRICS[which], weighted_metrics=weighted)
    assert_the_same(evaluation, learner.evaluate(data, verbose=0, return_dict=True))
    history = learner.fit(data, verbose=0).history
    assert_the_same(evaluation, {name: value for name, (value,) in history.items()})


@pytest.mark.parametrize("which", BY_OUTPUT)
def test_metrics_by_output(which):
    (support_x, support_y), (query_x, query_y) = batch()
    episodes = ((support_x, (support_y, -support_y)), (query_x, (query_y, -query_y)))
    learner = learner_of(("a", "b"), metrics=BY_OUTPUT[which])
    evaluation = amaml.evaluate(learner, [episodes], 4, BY_OUTPUT[which])
    assert {"loss", "a_mae"} < set(evaluation.after)
    data = tf.data.Dataset.from_tensors(episodes)
    assert_the_same(evaluation, learner.evaluate(data, verbose=0, return_dict=True))


def test_it_is_the_mean_of_what_the_adapted_models_report():
    episodes = batch()
    learner = learner_of(metrics=METRICS["that are no means of examples"])
    found = learner.evaluate(tf.data.Dataset.from_tensors(episodes), verbose=0, return_dict=True)
    reported = []
    for task in range(4):
        support, query = tf.nest.map_structure(lambda v, task=task: v[task], episodes)
        reported.append(learner.adapt(support).evaluate(*query, verbose=0, return_dict=True))
    for name in reported[0]:
        expected = np.mean([each[name] for each in reported])
        np.testing.assert_allclose(found[name], expected, rtol=1e-4, err_msg=name)


def test_the_files_of_a_run_agree(tmp_path):
    family = amaml.tasks.SinusoidFamily(num_support=3, num_query=4)
    learner = learner_of_family(family)
    amaml.train(
        learner,
        family,
        tmp_path,
        num_meta_steps=1,
        meta_batch_size=4,
        log_every=1,
    )
    header, row = (tmp_path / "log.csv").read_text().splitlines()
    logs = dict(zip(header.split(","), row.split(","), strict=True))
    episodes = family.episodes("train", batch_size=4, seed=0, num_batches=1)
    evaluation = amaml.evaluate(learner, episodes, 4, family.metrics())
    evaluation.write(tmp_path / "evaluation.json")
    written = json.loads((tmp_path / "evaluation.json").read_text())
    for name in ("loss", "rmse"):
        np.testing.assert_allclose(float(logs[name]), written["after"][name]["mean"], rtol=1e-5)


def test_a_metric_with_several_values_is_refused():
    learner = learner_of()
    with pytest.raises(amaml.UsageError, match=r"one value for each task, got .*f1_score"):
        amaml.evaluate(learner, [batch()], 4, [keras.metrics.F1Score(threshold=0.5)])


def learner_of_family(family):
    model = amaml.models.multilayer_perceptron((1,), 1, hidden_units=(4,), seed=0)
    learner = amaml.MetaLearner(model, amaml.algorithms.MAML(0.1, 2))
    learner.compile(
        keras.optimizers.SGD(0.0), family.loss, metrics=family.metrics(), jit_compile="off"
    )
    return learner
