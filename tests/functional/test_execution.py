"""What "auto" does with models and losses that cannot be vectorised or compiled by XLA."""

import logging

import keras
import numpy as np
import pytest
import tensorflow as tf

import amaml_tf as amaml
from amaml_tf.functional import execution
from amaml_tf.functional.execution import Execution

LAYERS = keras.layers
VECTORISED, SIDE_BY_SIDE = Execution(True, False), Execution(False, False)
COMPILED_DERIVATIVES = Execution(False, False, jit_derivatives=True)


def episodes(missing=0.0):
    rng = np.random.default_rng(0)

    def points():
        x, y = (rng.normal(size=(2, 6, d)) for d in (3, 1))
        y[0, :2] = missing  # so that the tasks have different numbers of targets
        return tf.constant(x, tf.float32), tf.constant(y, tf.float32)

    return points(), points()


def learner_of(loss="mse", *layers, **options):
    keras.utils.set_random_seed(0)
    model = keras.Sequential([keras.Input((3,)), *layers, LAYERS.Dense(1)])
    learner = amaml.MetaLearner(model, amaml.algorithms.MAML(0.05, 2))
    learner.compile("sgd", loss=loss, **options)
    return learner


def of_finite(y_true, y_pred):
    return tf.reduce_mean(tf.square(tf.boolean_mask(y_true - y_pred, tf.math.is_finite(y_true))))


def of_python(y_true, y_pred):
    factor = tf.numpy_function(lambda y: np.float32(2), [y_true], tf.float32)
    factor.set_shape(())
    return factor * tf.reduce_mean(tf.square(y_true - y_pred))


def of_scan(y_true, y_pred):
    """TensorFlow logs pages about why it cannot vectorise its derivative."""
    return tf.reduce_mean(tf.square(tf.scan(lambda sum_, y: sum_ / 2 + y, y_true - y_pred)))


class Halving(keras.layers.Layer):
    """Halves its inputs until they are small: the number of steps is not known before."""

    def call(self, x):
        return tf.while_loop(lambda y: tf.reduce_max(tf.abs(y)) > 0.5, lambda y: (y / 2,), (x,))[0]


CASES = {
    "a large model": ("mse", (), COMPILED_DERIVATIVES),
    "a large model that XLA cannot compile": (of_python, (), SIDE_BY_SIDE),
    "sizes that depend on values": (of_finite, (), SIDE_BY_SIDE),
    "a loop that depends on values": ("mse", (Halving,), VECTORISED),
    "python code": (of_python, (), VECTORISED),
    "a scan": (of_scan, (), COMPILED_DERIVATIVES),
}


def _is_told(record):
    return record.name.startswith("amaml_tf") or record.levelno >= logging.ERROR


@pytest.fixture
def every_model_is_large(monkeypatch):
    if tf.config.list_physical_devices("GPU"):
        pytest.skip("Only CPUs take long to vectorise a large model.")
    monkeypatch.setattr(execution, "_MOST_OPERATIONS", 1)


@pytest.mark.parametrize("name", CASES)
def test_what_a_user_brings_trains_by_default(name, caplog, request):
    if "large" in name:
        request.getfixturevalue("every_model_is_large")
    loss, layers, expected = CASES[name]
    batch = episodes(np.nan if loss is of_finite else 0.0)
    learner = learner_of(loss, *(layer() for layer in layers))
    with caplog.at_level(logging.WARNING, "amaml_tf"):
        learner.fit(tf.data.Dataset.from_tensors(batch).repeat(2), verbose=0)
    found = learner.meta_gradients(batch)
    assert learner.execution == expected
    (message,) = [r.getMessage() for r in caplog.records if _is_told(r)]
    assert message.startswith("This model and loss are not executed as one vectorised program")
    assert "in user code" not in message
    assert message.endswith(f"they are executed {expected.name}.")
    plain = learner_of(loss, *(layer() for layer in layers), vectorize="off", jit_compile="off")
    plain.model.set_weights(learner.model.get_weights())
    for one, other in zip(found.gradients, plain.meta_gradients(batch).gradients, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6)


def test_an_evaluation_tries_too():
    learner = learner_of(of_finite)
    found = amaml.evaluate(learner, [episodes(np.nan)], 2, times=[0.05, 0.1])
    assert np.isfinite(found.after["loss"].mean)
    assert learner.execution == SIDE_BY_SIDE


def test_batches_of_unknown_size_are_tried():
    learner = learner_of(of_finite)
    dataset = tf.data.Dataset.from_tensors(episodes()).unbatch().batch(2)
    assert dataset.element_spec[0][0].shape[0] is None
    learner.fit(dataset, verbose=0)
    assert learner.execution == SIDE_BY_SIDE


def test_what_the_user_asks_for_is_done_or_refused():
    learner = learner_of(of_finite, jit_compile="on", vectorize="on")
    with pytest.raises(amaml.UsageError, match="set vectorize='off' and jit_compile='off'"):
        learner.fit(tf.data.Dataset.from_tensors(episodes()), verbose=0)
    with pytest.raises(amaml.UsageError, match="with XLA"):
        learner_of("mse", Halving(), jit_compile=True, vectorize="on").meta_gradients(episodes())
    learner = learner_of("mse", Halving(), jit_compile="off")
    learner.meta_gradients(episodes())
    assert learner.execution == VECTORISED


def test_a_mistake_of_the_user_is_not_tried_again(caplog):
    learner = learner_of()
    (x, y), query = episodes()
    with pytest.raises(ValueError, match="incompatible with the layer"):
        learner.meta_gradients(((tf.concat([x, x], axis=-1), y), query))
    assert not [r for r in caplog.records if r.name.startswith("amaml_tf")]


@pytest.mark.usefixtures("every_model_is_large")
def test_one_task_of_a_large_model_that_xla_cannot_compile():
    batch = tf.nest.map_structure(lambda v: v[:1], episodes())
    learner = learner_of(of_python)
    assert all(np.isfinite(g).all() for g in learner.meta_gradients(batch).gradients)
    assert learner.execution == SIDE_BY_SIDE


@pytest.mark.usefixtures("every_model_is_large")
def test_one_task_of_a_large_model():
    (support, query), one = episodes(), slice(0, 1)
    batch = tf.nest.map_structure(lambda v: v[one], (support, query))
    learner = learner_of("mse")
    found = learner.meta_gradients(batch)
    assert learner.execution == COMPILED_DERIVATIVES
    plain = learner_of("mse", vectorize="off", jit_compile="off")
    for one, other in zip(found.gradients, plain.meta_gradients(batch).gradients, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6)


@pytest.mark.usefixtures("every_model_is_large")
def test_a_large_model_inside_a_users_own_xla():
    batch = episodes()
    learner = learner_of("mse")
    program = tf.function(lambda given: learner.meta_gradients(given).gradients, jit_compile=True)
    plain = learner_of("mse", vectorize="off", jit_compile="off").meta_gradients(batch)
    for one, other in zip(program(batch), plain.gradients, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6)
    assert learner.execution == COMPILED_DERIVATIVES
