"""Every layer of Keras that keeps something beside its variables is copied with it."""

import inspect
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

from amaml_tf.functional.model import FunctionalModel
from amaml_tf.learner.adapted_model import adapted_model

LAYERS = keras.layers
RNG = np.random.default_rng(0)
NUMBERS = RNG.normal(5, 2, (12, 3)).astype("float32")
WORDS = np.array([["a"], ["b"], ["c"], ["b"]])
COUNTS = np.array([[1], [5], [9], [5]])
#: Layers that keep what `adapt` learned or what they were given: (how to make, inputs).
KEPT = {
    "Normalization": (lambda: LAYERS.Normalization(), NUMBERS),
    "Discretization": (lambda: LAYERS.Discretization(num_bins=4), NUMBERS),
    "IntegerLookup": (lambda: LAYERS.IntegerLookup(), COUNTS),
    "StringLookup": (lambda: LAYERS.StringLookup(), WORDS),
    "TextVectorization": (lambda: LAYERS.TextVectorization(output_sequence_length=2), WORDS),
    "CategoryEncoding": (lambda: LAYERS.CategoryEncoding(12), COUNTS),
    "Hashing": (lambda: LAYERS.Hashing(5, salt=7), WORDS),
    "HashedCrossing": (None, "takes two inputs, and keeps only its configuration, as Hashing"),
}
KEEPS_STATE = ("adapt", "load_assets")


def listed():
    """The layers of Keras that keep state of their own."""
    for name, kind in inspect.getmembers(LAYERS, inspect.isclass):
        if any(hasattr(kind, method) for method in KEEPS_STATE):
            yield name


def test_every_layer_that_keeps_state_is_tried():
    untried = {name for name in listed() if name not in KEPT}
    # Wraps the kernels of a model that runs elsewhere; it has no configuration to copy.
    assert untried <= {"TFSMLayer"}


def assert_that_the_copy_predicts_the_same(layer, x):
    inputs = keras.Input(x.shape[1:], dtype=x.dtype.name if x.dtype.kind != "U" else "string")
    values = keras.ops.cast(layer(inputs), "float32")
    outputs = LAYERS.Dense(2)(LAYERS.Flatten()(values))
    function = FunctionalModel(keras.Model(inputs, outputs), "mse", batch_statistics=False)
    x = tf.constant(x)
    parameters = [value + 0.5 for value in function.parameters()]
    expected: Any = function.predict(parameters, function.state(), x, adapting=False)[0]
    copy = adapted_model(function, parameters, function.state(), (x, x))
    np.testing.assert_allclose(copy(x, training=False), expected, rtol=1e-6)
    assert np.ptp(expected, axis=0).max() > 1e-3  # the layer tells its inputs apart


@pytest.mark.parametrize("name", [name for name, (make, _) in KEPT.items() if make])
def test_an_adapted_copy_keeps_it(name):
    make, x = KEPT[name]
    layer = make()  # type: ignore[misc]
    if hasattr(layer, "adapt"):
        layer.adapt(x)
    assert_that_the_copy_predicts_the_same(layer, x)


def test_a_feature_space_before_the_model():
    space = keras.utils.FeatureSpace(
        {"word": "string_categorical", "size": "float_normalized"}, output_mode="concat"
    )
    data = {"word": WORDS[:, 0], "size": NUMBERS[:4, 0]}
    space.adapt(tf.data.Dataset.from_tensor_slices(data))
    encoded = space.get_encoded_features()
    model = keras.Model(space.get_inputs(), LAYERS.Dense(1)(encoded))
    function = FunctionalModel(model, "mse", batch_statistics=False)
    x = {name: tf.constant(values)[:, None] for name, values in data.items()}
    parameters = [value + 0.5 for value in function.parameters()]
    expected: Any = function.predict(parameters, function.state(), x, adapting=False)[0]
    support: Any = (x, x)
    copy = adapted_model(function, parameters, function.state(), support)
    np.testing.assert_allclose(copy(x, training=False), expected, rtol=1e-6)
