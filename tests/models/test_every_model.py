"""What holds for every inner model of the registry."""

import zipfile

import keras
import numpy as np
import pytest
import tensorflow as tf

import amaml_tf as amaml
from amaml_tf import models

every_model = pytest.mark.parametrize("name", models.REGISTRY)

#: What makes a model small, or quick to trace.
SMALL: dict[str, dict[str, int]] = {
    "resnet12": {"filters": 2, "num_blocks": 2},
    "mobilenet_v3_small": {"num_frozen_layers": 153},
    "transformer": {"width": 8, "num_heads": 2, "num_blocks": 1},
}


def make(name, **arguments):
    return models.REGISTRY[name]((32, 32, 1), 3, **SMALL.get(name, {}), **arguments)


@every_model
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_it_is_built_for_inputs_and_outputs(name, dtype):
    model = make(name, dtype=dtype)
    assert model.built
    assert model.output_shape == (None, 3)
    assert {str(variable.dtype) for variable in model.trainable_variables} == {dtype}


@every_model
def test_a_seed_gives_the_same_weights_and_another_seed_others(name):
    first, same, other = (make(name, seed=seed) for seed in (1, 1, 2))
    for one, another in zip(first.get_weights(), same.get_weights(), strict=True):
        np.testing.assert_array_equal(one, another)
    assert not np.array_equal(first.get_weights()[0], other.get_weights()[0])


@every_model
def test_a_saved_model_needs_keras_alone(name, tmp_path):
    model = make(name, seed=0)
    model.save(tmp_path / "model.keras")
    with zipfile.ZipFile(tmp_path / "model.keras") as saved:
        assert "amaml" not in saved.read("config.json").decode()
    x = np.random.default_rng(0).integers(0, 9, (2, 32, 32, 1))
    loaded = keras.models.load_model(tmp_path / "model.keras", safe_mode=True)
    np.testing.assert_array_equal(loaded(x), model(x))


@every_model
def test_it_takes_a_meta_step(name):
    x = tf.random.stateless_uniform((2, 6, 32, 32, 1), (0, 0), maxval=9, dtype=tf.int32)
    if name != "transformer":
        x = tf.cast(x, tf.float32)
    y = tf.tile([[0, 1, 2, 0, 1, 2]], [2, 1])
    model = make(name, seed=0)
    learner = amaml.MetaLearner(model, amaml.algorithms.MAML(0.1, 1))
    loss = "sparse_categorical_crossentropy"
    learner.compile(loss=loss, jit_compile="off")
    result = learner.meta_gradients(((x, y), (x, y)))
    assert len(result.gradients) == len(model.trainable_variables)
    assert all(np.isfinite(gradient).all() for gradient in result.gradients)


@every_model
def test_it_can_be_chosen_by_its_name(name):
    family = amaml.tasks.SinusoidFamily()
    family.input_shape = (32, 32, 1)
    assert amaml.Experiment(model=name).make_model(family).output_shape == (None, 1)
