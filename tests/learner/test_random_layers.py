"""Every layer of Keras that draws random numbers, and every one that looks words up, adapts."""

import inspect
from collections.abc import Callable
from typing import Any

import keras
import keras_lists
import numpy as np
import pytest
import tensorflow as tf

import amaml_tf as amaml

LAYERS = keras.layers
RNG = np.random.default_rng(0)
KNOWN = {
    "rate": 0.5,
    "stddev": 0.5,
    "factor": 0.3,
    "height_factor": 0.3,
    "width_factor": 0.3,
    "height": 4,
    "width": 4,
    "filters": 2,
    "kernel_size": 2,
    "units": 2,
    "num_heads": 1,
    "key_dim": 2,
    "head_dim": 2,
    "num_query_heads": 2,
    "num_key_value_heads": 1,
}
#: Shapes of inputs and ways to call a layer. The first that the layer takes are tried.
SHAPES = [(8, 8, 3), (4, 3), (2, 4, 4, 3), (2, 3, 3, 3, 2)]
CALLS: list[tuple[Callable[[Any, Any], Any], list[tuple[int, ...]]]] = [
    (lambda layer, x: layer(x), SHAPES),
    (lambda cell, x: LAYERS.RNN(cell)(x), [(4, 3)]),
    (lambda layer, x: layer(x, x), SHAPES),
    (lambda layer, x: layer([x, x]), SHAPES),
]
#: They need another framework.
FOREIGN = ("FlaxLayer", "JaxLayer")
RANDOM = {
    name: kind
    for name, kind in keras_lists.classes(LAYERS, LAYERS.Layer).items()
    if "seed" in inspect.signature(kind).parameters and name not in FOREIGN
}


def made(kind):
    given = keras_lists.required(kind, KNOWN)
    if kind is LAYERS.RandomPosterization:
        given["factor"] = 4  # bits
    if "dropout" in inspect.signature(kind).parameters:
        given["dropout"] = 0.5
    return kind(**given, seed=1)


def model_of(name):
    for call, shapes in CALLS:
        for shape in shapes:
            inputs = keras.Input(shape)
            try:
                values = call(made(RANDOM[name]), inputs)
                values = LAYERS.Rescaling(0.01)(LAYERS.Flatten()(values))
                model = keras.Model(inputs, LAYERS.Dense(1)(values))
                for training in (False, True):  # Keras itself cannot run every shape that it builds
                    model(tf.zeros((2, *shape)), training=training)
            except (ValueError, TypeError, IndexError):
                continue
            return model, shape
    raise AssertionError(f"give {name} inputs that it takes")


def learner_of(model):
    learner = amaml.MetaLearner(model, amaml.algorithms.MAML(0.01, 2))
    learner.compile("sgd", loss="mse", vectorize="off", jit_compile="off")
    return learner


def assert_that_the_copy_predicts_what_the_learner_predicts(learner, support):
    copy, function = learner.adapt(support), learner.function
    parameters = [tf.convert_to_tensor(v) for v in copy.trainable_variables]
    expected = function.predict(parameters, function.state(), support[0], adapting=False)[0]
    np.testing.assert_allclose(copy(support[0], training=False), expected, rtol=1e-5, atol=1e-6)
    before = [v.numpy() for v in learner.model.trainable_variables]
    assert any(np.any(a != b) for a, b in zip(parameters, before, strict=True))
    return copy


@pytest.mark.long
@pytest.mark.parametrize("name", RANDOM)
def test_a_layer_that_draws_random_numbers(name):
    model, shape = model_of(name)
    x = tf.constant(RNG.uniform(0, 255, (4, *shape)), tf.float32)
    y = tf.constant(RNG.normal(size=(4, 1)), tf.float32)
    assert any("seed_generator_state" in v.path for v in model.non_trainable_variables)
    assert_that_the_copy_predicts_what_the_learner_predicts(learner_of(model), (x, y))


WORDS = np.array([["a b"], ["b c"], ["c"], ["b a"]])
LOOKUPS: dict[str, Callable[[], Any]] = {
    "StringLookup": lambda: LAYERS.StringLookup(output_mode="multi_hot"),
    "TextVectorization": lambda: LAYERS.TextVectorization(output_mode="count"),
    "TextVectorization of a vocabulary": lambda: LAYERS.TextVectorization(
        output_mode="tf_idf", vocabulary=["a", "b"], idf_weights=[0.5, 2.0]
    ),
}


@pytest.mark.parametrize("which", LOOKUPS)
def test_words_are_looked_up_by_the_copy_and_by_what_is_saved_of_it(which, tmp_path):
    layer = LOOKUPS[which]()
    if "of a vocabulary" not in which:
        layer.adapt(WORDS)
    inputs = keras.Input((1,), dtype="string")
    values = keras.ops.cast(layer(inputs), "float32")
    learner = learner_of(keras.Model(inputs, LAYERS.Dense(1)(LAYERS.Flatten()(values))))
    support = tf.constant(WORDS), tf.constant([[1.0], [2.0], [3.0], [4.0]])
    copy = assert_that_the_copy_predicts_what_the_learner_predicts(learner, support)
    expected = copy(support[0])
    assert np.ptp(expected) > 1e-3  # the words are told apart
    copy.save(tmp_path / "copy.keras")
    loaded = keras.models.load_model(tmp_path / "copy.keras")
    np.testing.assert_allclose(loaded(support[0]), expected, rtol=1e-6)
    learner.save(tmp_path / "learner.keras")
    again = keras.models.load_model(tmp_path / "learner.keras").adapt(support)
    np.testing.assert_allclose(again(support[0]), expected, rtol=1e-5)
