"""Two replicas on two logical CPUs learn what one device does, by any kind of loss."""

import os

os.environ.setdefault("XLA_FLAGS", "--xla_backend_optimization_level=0")

import keras
import numpy as np
import problems
import pytest
import tensorflow as tf

import amaml_tf as amaml
from amaml_tf import distribution

tf.config.set_logical_device_configuration(
    tf.config.list_physical_devices("CPU")[0], [tf.config.LogicalDeviceConfiguration()] * 2
)

PROBLEM = problems.dense(num_tasks=5)
FIRST = PROBLEM.model.get_weights()
(SX, SY), QUERY = PROBLEM.episodes
BROKEN = ((tf.tensor_scatter_nd_update(SX, [[3]], [SX[3] * np.nan]), SY), QUERY)
TWO = distribution.mirrored()


def trained(loss, replicas, **options):
    """Weights, logs and an evaluation after three meta-steps, in which a task fails."""
    PROBLEM.model.set_weights(FIRST)
    learner = amaml.MetaLearner(PROBLEM.model, amaml.algorithms.MAML(0.1, 2))
    learner.distribute(replicas)
    learner.compile(
        keras.optimizers.Adam(0.01, global_clipnorm=0.1),
        loss=loss,
        metrics=["mae"],
        on_failure="drop",
        **{"vectorize": "off", "jit_compile": "off"} | options,
    )
    data = tf.data.Dataset.from_tensors(BROKEN)
    logs = learner.fit(data.repeat(3), verbose=0).history
    found = learner.evaluate(data, verbose=0, return_dict=True)
    return PROBLEM.model.get_weights(), logs, found


def main():
    assert TWO.number == 2
    expected = trained("mse", None)
    assert expected[1]["dropped_tasks"] == [3]
    for loss, options in (
        ("mse", {"vectorize": "on", "jit_compile": "on"}),
        (keras.losses.MeanSquaredError(), {}),
        (lambda y, p: tf.reduce_mean(tf.square(y - p)), {"tasks_per_step": 1}),
    ):
        weights, *logs = trained(loss, TWO, **options)
        for one, other in zip(weights, expected[0], strict=True):
            np.testing.assert_allclose(one, other, rtol=1e-9, atol=1e-12)
        for one, other in zip(logs, expected[1:], strict=True):
            assert set(one) == set(other)
            for name, value in one.items():
                np.testing.assert_allclose(value, other[name], rtol=1e-6)
    learner = amaml.MetaLearner(PROBLEM.model)
    learner.distribute(TWO)
    learner.compile(loss="mse", vectorize="off", jit_compile="off")
    one_task = tf.nest.map_structure(lambda v: v[:1], PROBLEM.episodes)
    with pytest.raises(amaml.UsageError, match="batches of 2 tasks or more, one for each"):
        learner.meta_gradients(one_task)
    strategy = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
    with strategy.scope():
        model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
        with pytest.raises(amaml.UsageError, match=r"outside of strategy\.scope\(\)"):
            amaml.MetaLearner(model).compile(loss="mse")
    with pytest.raises(amaml.UsageError, match=r"outside of strategy\.scope\(\)"):
        amaml.MetaLearner(model).compile(loss="mse")
    print("the same")


main()
