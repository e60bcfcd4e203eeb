"""What Keras and TensorFlow do that makes each patch necessary, and what the patches do.

A test of the first part fails on the day that upstream mends it: the patch can go then.
"""

import inspect
import threading
import types

import keras
import numpy as np
import pytest
import tensorflow as tf
from tensorflow.python.framework import ops

from amaml_tf.functional import keras_patches

X = tf.constant(np.random.default_rng(0).normal(2.0, 3.0, size=(6, 2)))


def layer(momentum=0.9):
    keras.utils.set_random_seed(0)
    made = keras.layers.BatchNormalization(momentum=momentum, dtype="float64")
    made.build(X.shape)
    return made


def curvature_of_the_variance(direction):
    """The Hessian of the sum of squared variances times `direction`, by nested tapes."""
    with tf.GradientTape() as outer:
        outer.watch(X)
        with tf.GradientTape() as inner:
            inner.watch(X)
            loss = tf.reduce_sum(tf.square(tf.nn.moments(X, [0])[1]))
        slope = inner.gradient(loss, X)
    return outer.gradient(slope, X, output_gradients=direction)


def exact_curvature_of_the_variance(direction):
    """L = Σ v², v = mean (x - m)²: L'' d = 8/n² (x-m) Σ (x-m) d + 4 v / n (d - mean d)."""
    x, d, n = X.numpy(), direction.numpy(), len(X)
    deviations = x - x.mean(axis=0)
    along = 8 / n**2 * deviations * np.sum(deviations * d, axis=0)
    return along + 4 * np.mean(deviations**2, axis=0) / n * (d - d.mean(axis=0))


# -- upstream -----------------------------------------------------------------------------------


def test_upstream_moments_have_wrong_second_derivatives():
    direction = tf.constant(np.random.default_rng(1).normal(size=X.shape))
    error = curvature_of_the_variance(direction) - exact_curvature_of_the_variance(direction)
    assert np.abs(error).max() > 1e-2


@pytest.fixture
def four_replicas(monkeypatch):
    """As in a replica of a strategy with four; Keras asks for nothing else."""
    strategy = types.SimpleNamespace(num_replicas_in_sync=4)
    monkeypatch.setattr(tf.distribute, "get_strategy", lambda: strategy)


def test_upstream_losses_are_divided_by_the_number_of_replicas(four_replicas):
    assert keras.losses.MeanSquaredError()(X, X + 2) == 1
    assert keras.losses.MeanSquaredError(reduction="sum")(X, X + 2) == 24


def test_upstream_batch_normalization_ties_its_statistics_to_training():
    assert "training" in inspect.signature(layer().call).parameters
    assert not {"batch_statistics", "use_batch_statistics"} & set(
        inspect.signature(layer().call).parameters
    )
    np.testing.assert_allclose(layer()(X, training=False), X / np.sqrt(1 + 1e-3))


def test_upstream_batch_normalization_stores_a_moving_average():
    made = layer(momentum=0.9)
    made(X, training=True)
    np.testing.assert_allclose(made.moving_mean, 0.1 * np.mean(X, axis=0))


@pytest.fixture
def as_with_a_gpu(monkeypatch):
    found = tf.config.list_logical_devices

    def devices(kind=None):
        return ["GPU:0"] if kind == "GPU" else found(kind)

    monkeypatch.setattr(tf.config, "list_logical_devices", devices)


def operations_of(made):
    """The operations of a recurrent layer, traced."""
    made.build((None, 4, 3))
    traced = tf.function(made, autograph=False).get_concrete_function(tf.TensorSpec([2, 4, 3]))
    definition = traced.graph.as_graph_def()
    nodes = [node for function in definition.library.function for node in function.node_def]
    return {node.op for node in [*definition.node, *nodes]}


RECURRENT = pytest.mark.parametrize("kind", [keras.layers.LSTM, keras.layers.GRU])


@RECURRENT
@pytest.mark.usefixtures("as_with_a_gpu")
def test_upstream_takes_kernels_without_second_derivatives_on_a_gpu(kind):
    assert "CudnnRNNV3" in operations_of(kind(2))
    with pytest.raises(LookupError):
        ops.gradient_registry.lookup("CudnnRNNBackpropV3")


# -- the patches --------------------------------------------------------------------------------


def test_moments_have_right_second_derivatives():
    direction = tf.constant(np.random.default_rng(1).normal(size=X.shape))
    with keras_patches.twice_differentiable():
        found = curvature_of_the_variance(direction)
    np.testing.assert_allclose(found, exact_curvature_of_the_variance(direction), rtol=1e-12)


@RECURRENT
@pytest.mark.usefixtures("as_with_a_gpu")
def test_recurrent_layers_have_second_derivatives_on_a_gpu(kind):
    with keras_patches.twice_differentiable():
        found = operations_of(kind(2))
        assert "While" in found or "StatelessWhile" in found
        assert not any(name.startswith("Cudnn") for name in found)
        with pytest.raises(ValueError, match="use_cudnn=True"):
            operations_of(kind(2, use_cudnn=True))


@pytest.mark.parametrize("keepdims", [False, True])
def test_moments_have_the_values_and_shapes_of_tensorflow(keepdims):
    expected = tf.nn.moments(X, [0], keepdims=keepdims)
    with keras_patches.twice_differentiable():
        found = tf.nn.moments(X, [0], keepdims=keepdims)
    for one, other in zip(found, expected, strict=True):
        assert one.shape == other.shape
        np.testing.assert_allclose(one, other, rtol=1e-12)


@pytest.mark.parametrize("name", ["a b", "größe", "_a", "{}", " "])
def test_any_name_of_a_layer_can_be_traced(name):
    with tf.Graph().as_default(), pytest.raises(ValueError, match="name"), tf.name_scope(name):
        tf.constant(0)
    made = keras.layers.Dense(1, name=name)
    made.build((None, 2))
    with keras_patches.twice_differentiable():
        tf.function(made, autograph=False).get_concrete_function(tf.TensorSpec([2, 2]))
    assert made.name == name


@pytest.mark.parametrize("training", [False, True])
def test_batch_statistics_are_used_or_not_whatever_training_says(training):
    with keras_patches.batch_statistics(True):
        normalized = layer()(X, training=training)
    np.testing.assert_allclose(np.mean(normalized, axis=0), 0, atol=1e-12)
    with keras_patches.batch_statistics(False):
        stored = layer()(X, training=training)
    np.testing.assert_allclose(stored, X / np.sqrt(1 + 1e-3))


def test_a_frozen_layer_uses_its_stored_statistics():
    made = layer()
    made.trainable = False
    with keras_patches.batch_statistics(True):
        np.testing.assert_allclose(made(X), X / np.sqrt(1 + 1e-3))


def test_the_statistics_of_one_batch_are_stored():
    made = layer(momentum=0.9)
    with keras_patches.statistics_of_one_batch():
        made(X)
    np.testing.assert_allclose(made.moving_mean, np.mean(X, axis=0), rtol=1e-12)
    np.testing.assert_allclose(made.moving_variance, np.var(X, axis=0), rtol=1e-12)
    assert made.momentum == 0.9


def test_contexts_nest_and_end_on_an_error():
    def raising():
        with keras_patches.batch_statistics(False):
            raise KeyError

    with keras_patches.batch_statistics(True):
        with pytest.raises(KeyError):
            raising()
        np.testing.assert_allclose(np.mean(layer()(X), axis=0), 0, atol=1e-12)
    np.testing.assert_allclose(layer()(X), X / np.sqrt(1 + 1e-3))


def test_threads_do_not_see_each_other():
    """Each of eight threads traces over and over, with batch statistics or without."""
    wrong: list[str] = []
    together = threading.Barrier(8)

    def trace(number):
        made = layer()
        together.wait()
        for _ in range(20):
            with keras_patches.batch_statistics(number % 2 == 0):
                function = tf.function(lambda x: made(x, training=True)).get_concrete_function(X)
            normalized = np.abs(np.mean(function(X), axis=0)).max() < 1e-9
            if normalized != (number % 2 == 0):
                wrong.append(f"thread {number}")

    threads = [threading.Thread(target=trace, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_layers_keep_their_signature_and_their_configuration():
    with keras_patches.batch_statistics(True):
        made = layer()
    assert list(inspect.signature(made.call).parameters) == ["inputs", "training", "mask"]
    again = keras.layers.BatchNormalization.from_config(made.get_config())
    assert again.momentum == made.momentum


def test_losses_of_one_device(four_replicas):
    with keras_patches.losses_of_one_device():
        assert keras.losses.MeanSquaredError()(X, X + 2) == 4
    assert keras.losses.MeanSquaredError()(X, X + 2) == 1
