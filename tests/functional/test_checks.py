"""What cannot be adapted, and what are no episodes, is refused with what came instead."""

import keras
import pytest
import tensorflow as tf

import amaml_tf as amaml
from amaml_tf.episodes import check_episodes, check_examples
from amaml_tf.functional.checks import check_model
from amaml_tf.registry import Registry

LAYERS, X = keras.layers, tf.zeros([2, 3])


def network(**options):
    return keras.Sequential([keras.Input((3,)), LAYERS.Dense(1, **options)], name="net")


def frozen():
    model = network()
    model.trainable = False
    return model


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda: keras.Sequential([LAYERS.Dense(1)]), "Expected a built model"),
        (frozen, "Expected 'net' to have trainable variables, found none"),
        (lambda: network(dtype="float16"), "all float32 or all float64, got float16"),
        (
            lambda: keras.Sequential([network(), LAYERS.Dense(1, dtype="float64")]),
            "all float32 or all float64, got float32, float64",
        ),
    ],
)
def test_models_that_cannot_be_adapted(make, sentence):
    with pytest.raises(amaml.UsageError, match=sentence):
        check_model(make())
    check_model(network())


@pytest.mark.parametrize(
    ("data", "sentence"),
    [
        (tf.zeros([5]), "Expected batches of episodes"),
        (((X, X), (X,)), "Expected batches of episodes"),
        (((X, X), (X, X[:1])), r"the same number of tasks .* got \['1', '2'\]"),
        (((X, X), (X, X[:, 0])), r"Expected query_y with the examples on axis 1, got the shape \("),
        (((X, X), (X, X[:, :2])), "query"),
        (((X, tf.sparse.from_dense(X)), (X, X)), "got a SparseTensor"),
        (((X, tf.RaggedTensor.from_tensor(X)), (X, X)), "got a RaggedTensor"),
    ],
)
def test_what_are_no_episodes(data, sentence):
    with pytest.raises(amaml.UsageError, match=sentence):
        check_episodes(data)


def test_a_set_of_one_array():
    with pytest.raises(amaml.UsageError, match="Expected the support set as"):
        check_examples((X,))


def test_names_in_registries():
    registry: Registry[object] = Registry("shape")
    registry.register("circle")(type("Circle", (), {}))
    registry.register("circle")(type("Circle", (), {}))  # a module that is loaded again
    with pytest.raises(amaml.UsageError, match="Expected a new name for a shape, got 'circle'"):
        registry.register("circle")(type("Square", (), {}))
    with pytest.raises(amaml.UsageError, match="Expected shape to be one of circle, got 'square'"):
        registry.find("square")
