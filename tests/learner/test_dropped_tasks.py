"""A task that is dropped counts nowhere: not in the meta-step, the losses or the metrics."""

from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

import amaml_tf as amaml

LAYERS = keras.layers
RNG = np.random.default_rng(0)


def examples(*output_sizes, num_tasks=3):
    x = RNG.normal(size=(num_tasks, 6, 3)).astype("float32")
    y = [RNG.normal(size=(num_tasks, 6, size)).astype("float32") for size in output_sizes]
    return x, (y[0] if len(y) == 1 else tuple(y))


def learner_of(model, algorithm=None, **options):
    learner = amaml.MetaLearner(model, algorithm or amaml.algorithms.MAML(0.05, 2))
    given: dict[str, Any] = {"vectorize": "off", "jit_compile": "off", "on_failure": "drop"}
    learner.compile(keras.optimizers.SGD(0.1), **{"loss": "mse", **given, **options})
    return learner


def network(*output_sizes):
    keras.utils.set_random_seed(0)
    inputs = keras.Input((3,))
    x = LAYERS.Dense(4, "tanh")(inputs)
    outputs = [LAYERS.Dense(size, name=f"head_{n}")(x) for n, size in enumerate(output_sizes)]
    return keras.Model(inputs, outputs if len(outputs) > 1 else outputs[0])


def nan_in_a_target(episodes):
    episodes[1][1][1] = np.nan


def infinite_support(episodes):
    episodes[0][0][1] = np.inf


def nan_in_one_of_two_outputs(episodes):
    episodes[1][1][0][1] = np.nan


@pytest.mark.parametrize(
    ("spoil", "sizes", "options"),
    [
        (nan_in_a_target, (1,), {"weighted_metrics": ["mse"], "metrics": ["mae"]}),
        (
            nan_in_a_target,
            (1,),
            {"loss": keras.losses.Huber(), "kind": amaml.algorithms.Reptile},
        ),
        (infinite_support, (1,), {"metrics": [keras.metrics.RootMeanSquaredError()]}),
        (nan_in_one_of_two_outputs, (1, 2), {"loss": ["mse", "mae"], "metrics": [["mae"], []]}),
    ],
    ids=["weighted metrics", "Reptile", "support", "two outputs"],
)
def test_the_step_and_the_logs_are_those_of_the_other_tasks(spoil, sizes, options):
    kind = options.get("kind", amaml.algorithms.MAML)
    options = {name: value for name, value in options.items() if name != "kind"}
    episodes = examples(*sizes), examples(*sizes)
    sound = tf.nest.map_structure(lambda v: tf.constant(v[[0, 2]]), episodes)
    spoil(episodes)
    results = []
    for batch in (tf.nest.map_structure(tf.constant, episodes), sound):
        learner = learner_of(network(*sizes), kind(0.05, 2), **options)
        logs = learner.fit(tf.data.Dataset.from_tensors(batch), verbose=0).history
        results.append((logs, [v.numpy() for v in learner.model.weights]))
    (logs, weights), (expected, expected_weights) = results
    assert logs.pop("dropped_tasks") == [1]
    assert expected.pop("dropped_tasks") == [0]
    assert logs.keys() == expected.keys()
    for name, values in logs.items():
        np.testing.assert_allclose(values, expected[name], rtol=1e-5, err_msg=name)
    for one, other in zip(weights, expected_weights, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6)
