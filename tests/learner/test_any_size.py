"""Support sets of any size are adapted to by one program, whatever the examples are made of."""

from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

import amaml_tf as amaml

LAYERS = keras.layers
RNG = np.random.default_rng(0)


def numbers(*shape):
    return tf.constant(RNG.normal(size=shape), tf.float32)


def dense():
    return keras.Sequential([keras.Input((3,)), LAYERS.Dense(1)])


def of_tokens():
    layers = [keras.Input((5,), dtype="int32"), LAYERS.Embedding(7, 3, mask_zero=True)]
    return keras.Sequential([*layers, LAYERS.LSTM(2), LAYERS.Dense(1)])


def of_two_inputs():
    inputs = {name: keras.Input((2,), name=name) for name in ("a", "b")}
    return keras.Model(inputs, LAYERS.Dense(1)(LAYERS.Concatenate()(list(inputs.values()))))


def normalized():
    layers = [LAYERS.Dense(4), LAYERS.BatchNormalization(), LAYERS.Dense(1)]
    return keras.Sequential([keras.Input((3,)), *layers])


#: A model, and its support set of so many examples.
CASES = {
    "weights": (dense, lambda n: (numbers(n, 3), numbers(n, 1), tf.ones([n]))),
    "tokens": (
        of_tokens,
        lambda n: (tf.constant(RNG.integers(0, 7, (n, 5)), tf.int32), numbers(n, 1)),
    ),
    "two inputs": (
        of_two_inputs,
        lambda n: ({"a": numbers(n, 2), "b": numbers(n, 2)}, numbers(n, 1)),
    ),
    "batch normalization": (normalized, lambda n: (numbers(n, 3), numbers(n, 1))),
}


@pytest.mark.parametrize("name", CASES)
def test_sizes_share_a_program(name):
    make, support_of = CASES[name]
    learner = amaml.MetaLearner(make(), amaml.algorithms.MAML(0.05, 2))
    learner.compile("sgd", loss="mse")
    for count in (2, 3, 4, 7, 11, 30):
        support = support_of(count)
        adapted = learner.adapt(support)
        batch = tf.nest.map_structure(lambda v: v[tf.newaxis], support)
        alone = learner.adapt_many(batch) if count == 7 else None
        if alone is not None:  # by another program, of this size
            for one, many in zip(adapted.trainable_variables, alone, strict=True):
                np.testing.assert_allclose(one, many[0], rtol=1e-4, atol=1e-5)
    # `adapt` is traced for the first size, and once more for all others.
    program: Any = learner._programs._adapt_one
    assert program.experimental_get_tracing_count() <= 2
