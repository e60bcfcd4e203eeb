"""Layers that change when they are called are refused, unless they may."""

import keras
import pytest
import tensorflow as tf

import amaml_tf as amaml
from amaml_tf.functional.model import FunctionalModel

LAYERS = keras.layers


class Running(keras.layers.Layer):
    """Divides by a running mean, which Keras's `fit` updates in every step."""

    def build(self, shape):
        self.scale = self.add_weight(initializer="ones", trainable=False, name="scale")

    def call(self, x, training=False):
        if training:
            self.scale.assign(0.9 * self.scale + 0.1 * keras.ops.mean(keras.ops.abs(x)))
        return x / self.scale


class Measured(keras.layers.Layer):
    def __init__(self):
        super().__init__()
        self.mean = keras.metrics.Mean()

    def call(self, x):
        self.mean.update_state(keras.ops.mean(x))
        return x


class Noisy(keras.layers.Layer):
    """Draws by the seed of the process, which no layer has."""

    def call(self, x):
        return x + keras.random.normal((3, 2))


def frozen():
    return LAYERS.SpectralNormalization(LAYERS.Dense(2), trainable=False)


def predictions(layer, adapting):
    inputs = keras.Input(batch_shape=(4, 3, 2))
    function = FunctionalModel(keras.Model(inputs, LAYERS.Dense(1)(layer(inputs))), "mse")
    values = function.parameters(), function.state()
    return function.predict(*values, tf.ones((4, 3, 2)), adapting)[0]


@pytest.mark.parametrize(
    ("make", "variable"),
    [
        (lambda: LAYERS.SpectralNormalization(LAYERS.Dense(2)), "dense.*/kernel"),
        (frozen, "dense.*/kernel"),
        (Running, "running.*/scale"),
        (lambda: LAYERS.LSTM(2, stateful=True), "rnn_state"),
        (Noisy, "seed_generator_state"),
    ],
    ids=["spectral", "frozen spectral", "running mean", "stateful", "seed of the process"],
)
def test_layers_whose_changes_an_inner_run_would_lose(make, variable):
    with pytest.raises(amaml.UsageError, match=f"assign to no variables .* got .*{variable}"):
        predictions(make(), adapting=True)


@pytest.mark.parametrize(
    "make",
    [Measured, lambda: LAYERS.Dropout(0.5), lambda: LAYERS.BatchNormalization(renorm=True)],
    ids=["metric", "seed", "batch normalization"],
)
def test_layers_that_may_change(make):
    assert predictions(make(), adapting=True).shape[0] == 4
