"""A learner's functions inside of a user's own program that XLA compiles."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import amaml_tf as amaml

LAYERS = keras.layers
RNG = np.random.default_rng(0)


def numbers(*shape):
    return tf.constant(RNG.normal(size=shape), tf.float32)


def learner_of(algorithm, *layers, loss="mse", **options):
    keras.utils.set_random_seed(0)
    model = keras.Sequential([keras.Input((3,)), *layers, LAYERS.Dense(1)])
    learner = amaml.MetaLearner(model, algorithm)
    learner.compile("sgd", loss=loss, **options)
    return learner


def flow():
    return amaml.algorithms.AdjointMAML(amaml.GradientFlow(final_time=0.1))


CASES = {
    "the default flow": lambda: learner_of(flow()),
    "batch normalization": lambda: learner_of(
        amaml.algorithms.MAML(0.05, 2), LAYERS.Dense(4), LAYERS.BatchNormalization()
    ),
    "another loss and learned rates": lambda: learner_of(
        amaml.algorithms.MetaSGD(0.05, 2), LAYERS.Dense(4, "relu"), loss=keras.losses.LogCosh()
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_meta_gradients_are_the_same_and_failed_tasks_are_nan(name):
    learner = CASES[name]()
    support, query = (numbers(2, 6, 3), numbers(2, 6, 1)), (numbers(2, 6, 3), numbers(2, 6, 1))
    expected = learner.meta_gradients((support, query))
    compiled = tf.function(learner.meta_gradients, jit_compile=True)
    found = compiled((support, query))
    for part in ("gradients", "algorithm_gradients"):
        for one, other in zip(getattr(found, part), getattr(expected, part), strict=True):
            np.testing.assert_allclose(one, other, rtol=1e-3, atol=1e-5)
    x, y = (values.numpy() for values in support)
    y[1] = np.nan
    failed = compiled(((tf.constant(x), tf.constant(y)), query))
    np.testing.assert_array_equal(np.isnan(failed.losses), [False, True])
    np.testing.assert_array_equal(failed.diagnostics.forward.status < 0, [False, True])


@pytest.mark.parametrize("options", [{"jit_compile": True}, {}], ids=str)
def test_predictions_and_parameters_of_many_tasks(options):
    learner = learner_of(amaml.algorithms.MAML(0.05, 2), vectorize="off", jit_compile="off")
    support, query = (numbers(2, 6, 3), numbers(2, 6, 1)), (numbers(2, 6, 3), numbers(2, 6, 1))

    @tf.function(**options)  # Python that TensorFlow rewrites, as it does by default
    def both(support, query):
        losses = learner.predict_episodes((support, query)).after[0]
        return losses, learner.adapt_many(support)

    losses, parameters = both(support, query)
    expected = learner.predict_episodes((support, query)).after[0]
    np.testing.assert_allclose(losses, expected, rtol=1e-4)
    for one, other in zip(parameters, learner.adapt_many(support), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-6)


def test_a_model_is_made_outside():
    learner = learner_of(amaml.algorithms.MAML(0.05, 2))
    with pytest.raises(amaml.UsageError, match=r"adapt outside of a tf\.function, .* adapt_many"):
        tf.function(learner.adapt)((numbers(6, 3), numbers(6, 1)))
