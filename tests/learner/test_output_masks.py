"""Masks of layers reach the losses and the metrics, as in Keras."""

from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

import amaml_tf as amaml

LAYERS = keras.layers


def of_numbers():
    """Steps of zeros are masked."""
    return keras.Sequential([keras.Input((4, 2)), LAYERS.Masking(), LAYERS.Dense(3)])


def of_tokens():
    """Two outputs, of which the second has no steps."""
    x = inputs = keras.Input((4,), dtype="int32")
    x = LAYERS.GRU(3, return_sequences=True)(LAYERS.Embedding(6, 3, mask_zero=True)(x))
    pooled = LAYERS.Dense(3, name="all")(LAYERS.GlobalAveragePooling1D()(x))
    return keras.Model(inputs, [LAYERS.Dense(3, name="steps")(x), pooled])


class Marking(keras.layers.Layer):
    """A layer of one's own that masks."""

    def compute_mask(self, inputs, previous=None):
        return keras.ops.any(inputs != 0, axis=-1)

    def call(self, inputs):
        return inputs * 1.0


def of_ones_own():
    return keras.Sequential([keras.Input((4, 2)), Marking(), LAYERS.Dense(3)])


def examples(rng, model, weights):
    lengths = rng.integers(1, 5, (2, 5))
    there = np.arange(4) < lengths[..., None]
    if model.inputs[0].dtype == "int32":
        x: np.ndarray = rng.integers(1, 6, (2, 5, 4)) * there
    else:
        x = (rng.normal(size=(2, 5, 4, 2)) * there[..., None]).astype("float32")
    y = tuple(
        rng.normal(size=(2, 5, *output.shape[1:])).astype("float32") for output in model.outputs
    )
    given: tuple[Any, ...] = (x, y if len(y) > 1 else y[0])
    if weights:
        given = (*given, rng.uniform(0.5, 2, (2, 5)).astype("float32"))
    return tf.nest.map_structure(tf.constant, given)


def of_steps(weight, y):
    """Weights as Keras wants them beside a mask: one for each step."""
    if isinstance(y, tuple):
        return tuple(of_steps(weight, each) for each in y)
    return tf.tile(weight[:, None], [1, 4]) if y.shape.rank == 3 else weight


def made(kind):
    keras.utils.set_random_seed(0)
    return kind()


@pytest.mark.long
@pytest.mark.parametrize("weights", [False, True], ids=["plain", "weights"])
@pytest.mark.parametrize("kind", [of_numbers, of_tokens, of_ones_own])
def test_losses_and_metrics_leave_masked_steps_out(kind, weights):
    model, rng = made(kind), np.random.default_rng(0)
    episodes = examples(rng, model, weights), examples(rng, model, weights)
    metrics: dict[str, Any] = {
        "metrics": ["mae"],
        "weighted_metrics": [keras.metrics.MeanSquaredError()],
    }
    if kind is of_tokens:
        metrics = {role: [list(each), list(each)] for role, each in metrics.items()}
    learner = amaml.MetaLearner(model, amaml.algorithms.MAML(0.05, 1))
    learner.compile(keras.optimizers.SGD(0.0), "mse", vectorize="off", jit_compile="off", **metrics)
    found: Any = learner.evaluate(
        tf.data.Dataset.from_tensors(episodes), verbose=0, return_dict=True
    )
    evaluated = amaml.evaluate(learner, [episodes], 2, **metrics).before
    reference = made(kind)
    reference.compile(loss="mse", **metrics)
    of_tasks = []
    for task in range(2):
        x, y, *weight = tf.nest.map_structure(lambda v, task=task: v[task], episodes[1])
        given = (x, y, *(of_steps(each, y) for each in weight))
        of_tasks.append(reference.test_on_batch(*given, return_dict=True))
    names = [name for name in of_tasks[0] if not name.endswith("_loss")]  # those of outputs
    assert len(names) in (3, 5)
    for name in names:
        expected = np.mean([each[name] for each in of_tasks])
        np.testing.assert_allclose(found[f"{name}_before"], expected, rtol=1e-5, err_msg=name)
        np.testing.assert_allclose(evaluated[name].mean, expected, rtol=1e-5, err_msg=name)
        reference.reset_metrics()


def test_padding_and_masks_together():
    """A padded example is masked, whatever stands in its place."""
    model, rng = made(of_numbers), np.random.default_rng(0)
    x, y = examples(rng, model, weights=False)
    learner = amaml.MetaLearner(model, amaml.algorithms.MAML(0.05, 1))
    learner.compile(
        keras.optimizers.SGD(0.0), "mse", vectorize="off", jit_compile="off", metrics=["mae"]
    )

    def measured(episodes):
        data = tf.data.Dataset.from_tensors(episodes)
        found: Any = learner.evaluate(data, verbose=0, return_dict=True)
        return found

    ones = tf.ones((2, 5))
    padded = tuple(
        tf.concat([values, tf.fill([2, 2, *values.shape[2:]], fill)], axis=1)
        for values, fill in ((x, np.nan), (y, np.nan), (ones, 0.0))
    )
    expected = measured(((x, y, ones), (x, y, ones)))
    for name, value in measured((padded, padded)).items():
        np.testing.assert_allclose(value, expected[name], rtol=1e-6, err_msg=name)
