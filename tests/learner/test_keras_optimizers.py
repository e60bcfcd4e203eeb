"""Every optimizer of Keras makes the meta-step that its own `apply` makes."""

import functools

import keras
import keras_lists
import numpy as np
import pytest
import tensorflow as tf

import amaml_tf as amaml

#: LossScaleOptimizer wraps another one (see `HOW`), MultiOptimizer several for given variables.
WRAPPERS = ("LossScaleOptimizer", "MultiOptimizer")
OPTIMIZERS = {
    name: kind
    for name, kind in keras_lists.classes(keras.optimizers, keras.optimizers.Optimizer).items()
    if name not in WRAPPERS
}
HOW = ["plain", "loss_scale_factor", "use_ema", "mixed_float16", "mixed_bfloat16"]


def episodes():
    rng = np.random.default_rng(0)

    def examples():
        return tuple(tf.constant(rng.normal(size=(2, 5, k)), tf.float32) for k in (3, 1))

    return examples(), examples()


@functools.cache
def learner_under(policy):
    """One learner for all optimizers, because to trace it takes seconds."""
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy(policy)
    try:
        keras.utils.set_random_seed(0)
        model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(1)])
        learner = amaml.MetaLearner(model, amaml.algorithms.MetaSGD(0.05))
        learner.compile("sgd", loss="mse", vectorize="off", jit_compile="off")
    finally:
        keras.config.set_dtype_policy(before)
    return learner, [v.numpy() for v in learner.trainable_variables]


@pytest.mark.long
@pytest.mark.parametrize("how", HOW)
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_meta_step_is_that_of_the_optimizer(name, how):
    learner, start = learner_under(how if how.startswith("mixed") else "float32")
    for variable, value in zip(learner.trainable_variables, start, strict=True):
        variable.assign(value)
    options = {"loss_scale_factor": 64.0} if how == "loss_scale_factor" else {}
    average = {"use_ema": True, "ema_momentum": 0.5} if how == "use_ema" else {}
    wraps = isinstance(learner.optimizer, keras.optimizers.LossScaleOptimizer)
    assert wraps == (how == "mixed_float16")
    optimizer = OPTIMIZERS[name](learning_rate=0.25, **options, **average)
    if wraps:
        optimizer = keras.optimizers.LossScaleOptimizer(optimizer)
    learner.optimizer = optimizer

    expected = [keras.Variable(value) for value in start]
    reference = OPTIMIZERS[name](learning_rate=0.25, **average)
    for _ in range(2):
        result = learner.meta_gradients(episodes())
        reference.apply([*result.gradients, *result.algorithm_gradients], expected)
        learner.train_step(episodes())
    for one, variables in ((optimizer, learner.trainable_variables), (reference, expected)):
        one.finalize_variable_values(variables)
    for found, value, old in zip(learner.trainable_variables, expected, start, strict=True):
        np.testing.assert_allclose(found, value, rtol=1e-4, atol=1e-6)
        assert not np.array_equal(value, old)
