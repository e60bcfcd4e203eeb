"""Layers whose behaviour is not that of a plain function of their weights."""

from typing import Any

import keras
import numpy as np
import problems
import pytest
import tensorflow as tf

import amaml_tf as amaml

LAYERS = keras.layers


def learner_of(model, loss="mse", final_time=0.5, batch_statistics=True, **options):
    flow = amaml.GradientFlow(final_time=final_time, solver=amaml.solvers.GradientDescent(0.05))
    learner = amaml.MetaLearner(
        model, amaml.algorithms.AdjointMAML(flow), batch_statistics=batch_statistics
    )
    learner.compile("sgd", loss=loss, **options)
    return learner


def network(*layers, inputs=(4,), dtype="float64"):
    keras.utils.set_random_seed(0)
    with keras.device("cpu"):
        model = keras.Sequential([keras.Input(inputs, dtype=dtype), *(make() for make in layers)])
    return model


def batch(inputs=(4,), outputs=1, integers=0, num_tasks=2, dtype="float64"):
    rng = np.random.default_rng(7)

    def points():
        shape = (num_tasks, 6, *inputs)
        x = rng.integers(integers, size=shape) if integers else rng.normal(size=shape)
        y = rng.normal(size=(num_tasks, 6, outputs))
        return tf.constant(x, None if integers else dtype), tf.constant(y, dtype)

    return points(), points()


D = {"dtype": "float64"}
CASES: dict[str, Any] = {
    "batch normalization": (
        [lambda: LAYERS.Dense(5, **D), lambda: LAYERS.BatchNormalization(**D)],
        {},
    ),
    "layer normalization": (
        [lambda: LAYERS.Dense(5, "tanh", **D), lambda: LAYERS.LayerNormalization(**D)],
        {},
    ),
    "group normalization": (
        [lambda: LAYERS.Dense(6, **D), lambda: LAYERS.GroupNormalization(2, **D)],
        {},
    ),
    "embedding": (
        [lambda: LAYERS.Embedding(7, 3, **D), lambda: LAYERS.Flatten(**D)],
        {"integers": 7},
    ),
    "recurrent": ([lambda: LAYERS.LSTM(3, **D)], {"inputs": (4, 2)}),
    "gated recurrent": ([lambda: LAYERS.GRU(3, **D)], {"inputs": (4, 2)}),
    "convolution": (
        [lambda: LAYERS.Conv1D(2, 3, activation="tanh", **D), lambda: LAYERS.Flatten(**D)],
        {"inputs": (6, 2)},
    ),
}


@pytest.mark.long
@pytest.mark.parametrize("name", CASES)
def test_meta_gradients_match_central_differences(name):
    layers, data = CASES[name]
    episodes = batch(**data)
    inputs = {"inputs": data["inputs"]} if "inputs" in data else {}
    model = network(*layers, lambda: LAYERS.Dense(1, **D), **inputs)
    learner = learner_of(model)
    problem = problems.Problem(model, "mse", episodes)
    gradients = learner.meta_gradients(episodes).gradients
    slope, direction = problems.directional_differences(
        problems.loss_after_adaptation(problem, learner), model.trainable_variables
    )
    assert problems.along(gradients, direction) == pytest.approx(slope, rel=1e-6)


@pytest.mark.parametrize("vectorize", ["on", "off"])
def test_side_by_side_and_vectorized_agree(vectorize):
    problem = problems.convolutional()
    learner = learner_of(problem.model, problem.loss, vectorize=vectorize, jit_compile=False)
    expected = problems.unrolled_gradients(problem, 0.05, 10)
    result = learner.meta_gradients(problem.episodes)
    assert problems.relative_error(result.gradients, expected) < 1e-10


@pytest.mark.long
def test_dropout_has_one_mask_a_solve_and_is_off_in_predictions():
    model = network(
        lambda: LAYERS.Dense(8, "tanh", **D),
        lambda: LAYERS.Dropout(0.5, seed=1, **D),
        lambda: LAYERS.Dense(1, **D),
    )
    learner, episodes = learner_of(model), batch()
    problem = problems.Problem(model, "mse", episodes)
    gradients = learner.meta_gradients(episodes).gradients
    slope, direction = problems.directional_differences(
        problems.loss_after_adaptation(problem, learner), model.trainable_variables
    )
    assert problems.along(gradients, direction) == pytest.approx(slope, rel=1e-6)  # deterministic
    losses = learner.predict_episodes(episodes).before[0]
    x, y = (v[0] for v in episodes[1])
    expected = tf.reduce_mean(tf.square(model(x, training=False) - y))
    assert float(losses[0]) == pytest.approx(float(expected))
    adapted = [learner.adapt(tuple(v[0] for v in episodes[0])) for _ in range(2)]
    learner.fit(tf.data.Dataset.from_tensors(episodes), verbose=0)  # draws a new mask
    for one, other in zip(*(m.get_weights()[:4] for m in adapted), strict=True):
        np.testing.assert_array_equal(one, other)
    restored = model.get_weights()
    again = learner.adapt(tuple(v[0] for v in episodes[0]))
    assert not np.allclose(again.get_weights()[0], adapted[0].get_weights()[0])
    assert restored is not None


def test_batch_normalization_uses_the_batch_or_the_stored_statistics():
    model = network(lambda: LAYERS.BatchNormalization(**D), lambda: LAYERS.Dense(1, **D))
    episodes = batch()
    x, y = (v[0] for v in episodes[1])
    for batch_statistics in (True, False):
        learner = learner_of(model, batch_statistics=batch_statistics)
        before = model.get_weights()
        losses = learner.predict_episodes(episodes).before[0]
        expected = tf.reduce_mean(tf.square(model(x, training=batch_statistics) - y))
        model.set_weights(before)
        assert float(losses[0]) == pytest.approx(float(expected))
    learner = learner_of(model)
    learner.fit(tf.data.Dataset.from_tensors(episodes), verbose=0)
    statistics = [v.numpy() for v in model.layers[0].non_trainable_variables]
    np.testing.assert_array_equal(statistics[0], 0)  # never part of the flow, nor of training
    adapted = learner.adapt(tuple(v[0] for v in episodes[0]))
    mean = adapted.layers[0].moving_mean.numpy()
    np.testing.assert_allclose(mean, np.mean(episodes[0][0][0], axis=0), rtol=1e-6)


def test_frozen_layers_stay_as_they_are():
    model = network(
        lambda: LAYERS.Dense(5, "tanh", trainable=False, **D),
        lambda: LAYERS.BatchNormalization(trainable=False, **D),
        lambda: LAYERS.Dense(1, **D),
    )
    learner, episodes = learner_of(model), batch()
    frozen = [v.numpy() for layer in model.layers[:2] for v in layer.variables]
    result = learner.meta_gradients(episodes)
    assert len(result.gradients) == 2
    learner.fit(tf.data.Dataset.from_tensors(episodes), verbose=0)
    adapted = learner.adapt(tuple(v[0] for v in episodes[0]))
    for copy in (model, adapted):
        values = [v.numpy() for layer in copy.layers[:2] for v in layer.variables]
        for value, expected in zip(values, frozen, strict=True):
            np.testing.assert_array_equal(value, expected)
    assert not adapted.layers[0].trainable
