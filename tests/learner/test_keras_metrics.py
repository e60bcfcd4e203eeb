"""Every metric of Keras is the mean over tasks of what `Model.evaluate` reports of each."""

import inspect

import keras
import keras_lists
import numpy as np
import pytest
import tensorflow as tf

from amaml_tf.learner.episode_metrics import EpisodeMetrics
from amaml_tf.solvers.diagnostics import COMPLETED, nothing_done

NEEDED = {
    "num_classes": 3,
    "target_class_ids": [0, 1],
    "recall": 0.5,
    "precision": 0.5,
    "specificity": 0.5,
    "sensitivity": 0.5,
    "fn": keras.losses.mean_squared_error,
}
ARGUMENTS = {"threshold": 0.3, "thresholds": [0.3], "k": 2, "num_thresholds": 20, "delta": 0.4}
HALF = keras_lists.COUNT // 2
WEIGHTS = np.linspace(0.5, 2.0, keras_lists.COUNT).astype("float32")
#: These two take values, not targets and outputs.
OF_VALUES = ("Mean", "Sum")
CLASSES = {
    name: kind
    for name, kind in keras_lists.classes(keras.metrics, keras.metrics.Metric).items()
    if name not in OF_VALUES
}


def made(kind, name):
    given = keras_lists.required(kind, NEEDED)
    parameters = inspect.signature(kind).parameters
    given |= {n: v for n, v in ARGUMENTS.items() if n in parameters}
    return kind(name=name, **given)


METRICS = {
    **{n: lambda n=n: [n] for n in [*keras_lists.names(keras.metrics), "accuracy"]},
    **{n: lambda k=k: {"out": [made(k, "mine")]} for n, k in CLASSES.items()},
}


def of_episodes(metrics, outputs, labels, weights):
    """What a learner reports of the same examples, as those of two tasks."""
    plain, weighted = (metrics, None) if weights is None else (None, metrics)
    scored = EpisodeMetrics(plain, weighted, ["out"], counts_failures=False)
    outputs, labels, *weights = (
        tf.constant(values.reshape(2, -1, *values.shape[1:]))
        for values in (outputs, labels, weights)
        if values is not None
    )
    losses = tf.zeros(2)
    point = (losses, outputs)
    done = nothing_done(tf.zeros((2, 1)), losses)
    done = done._replace(status=tf.fill([2], COMPLETED))
    scored.update((outputs, labels, *weights), point, point, done)
    return scored.result()


@pytest.mark.long
@pytest.mark.parametrize("weights", [None, WEIGHTS], ids=["plain", "weights"])
@pytest.mark.parametrize("name", METRICS)
def test_a_metric_is_that_of_a_keras_model(name, weights):
    numbers = 0
    for what, outputs, labels in keras_lists.examples():
        if len(labels) != keras_lists.COUNT:
            continue
        role = "metrics" if weights is None else "weighted_metrics"
        model = keras_lists.identity(outputs.shape[1:], loss="mse", **{role: METRICS[name]()})
        of_tasks = [
            keras_lists.of_keras(
                model, *(None if v is None else v[task] for v in (outputs, labels, weights))
            )
            for task in (slice(HALF), slice(HALF, None))
        ]
        if any(isinstance(each, Exception) for each in of_tasks):
            continue
        expected = tf.nest.map_structure(lambda *values: np.mean(values, axis=0), *of_tasks)
        found = of_episodes(METRICS[name](), outputs, labels, weights)
        expected.pop("loss")
        assert expected
        for label, value in expected.items():
            for reported in (label, f"{label}_before"):
                np.testing.assert_allclose(found[reported], value, rtol=1e-5, err_msg=what)
            numbers += bool(np.all(np.isfinite(value)))
    assert numbers
