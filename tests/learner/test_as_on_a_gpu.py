"""What is traced if TensorFlow finds a GPU; it runs on the CPU."""

import numpy as np
import problems
import pytest
import tensorflow as tf

import amaml_tf as amaml


@pytest.fixture
def with_a_gpu(monkeypatch):
    found = tf.config.list_physical_devices

    def devices(kind=None):
        return ["GPU:0"] if kind == "GPU" else found(kind)

    monkeypatch.setattr(tf.config, "list_physical_devices", devices)


def learner_of(model):
    learner = amaml.MetaLearner(model, amaml.algorithms.MAML(0.1, 2))
    learner.compile("sgd", loss="mse")
    return learner


@pytest.mark.long
def test_max_pooling_in_float64_takes_a_way_that_works(with_a_gpu, monkeypatch):
    rng = np.random.default_rng(0)
    x, y = tf.constant(rng.normal(size=(2, 2, 4, 4, 1))), tf.constant(rng.normal(size=(2, 2, 2)))
    model = amaml.models.convolutional_network(
        (4, 4, 1), 2, filters=2, num_blocks=1, downsampling="max_pool", dtype="float64", seed=0
    )
    as_on_a_gpu = learner_of(model)
    found = as_on_a_gpu.meta_gradients(((x, y), (x, y))).gradients
    assert as_on_a_gpu._programs.execution.vectorize
    monkeypatch.undo()
    expected = learner_of(model).meta_gradients(((x, y), (x, y))).gradients
    assert problems.relative_error(found, expected) < 1e-10
