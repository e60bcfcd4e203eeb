"""Mixed precision: layers compute in bfloat16, the run and its adjoint in float32."""

import keras
import numpy as np
import problems
import pytest
import tensorflow as tf

import amaml_tf as amaml

X, Y = (np.random.default_rng(0).normal(size=(2, 8, width)).astype("float32") for width in (3, 1))
EPISODES = (
    (tf.constant(X[:, :5]), tf.constant(Y[:, :5])),
    (tf.constant(X[:, 5:]), tf.constant(Y[:, 5:])),
)


def meta_gradients(policy, solver):
    keras.utils.set_random_seed(0)
    layers = [
        keras.layers.Dense(16, "tanh", dtype=policy),
        keras.layers.Dense(1, dtype=policy),
        keras.layers.Activation("linear", dtype="float32"),
    ]
    model = keras.Sequential([keras.Input((3,)), *layers])
    flow = amaml.GradientFlow(final_time=1.0, solver=solver)
    learner = amaml.MetaLearner(model, amaml.algorithms.AdjointMAML(flow))
    learner.compile("sgd", loss="mse", jit_compile="off")
    return learner, learner.meta_gradients(EPISODES)


@pytest.mark.parametrize(
    "solver",
    [
        amaml.solvers.GradientDescent(0.1),
        pytest.param(
            amaml.solvers.RungeKuttaChebyshev(step_size=0.5, num_stages=4), marks=pytest.mark.long
        ),
    ],
    ids=lambda solver: solver.name,
)
def test_bfloat16_is_for_the_layers_alone(solver):
    """State and λ keep float32: twenty additions in bfloat16, of three digits, would lose more."""
    _, exact = meta_gradients("float32", solver)
    learner, found = meta_gradients("mixed_bfloat16", solver)
    assert all(gradient.dtype == tf.float32 for gradient in found.gradients)
    error = problems.relative_error(found.gradients, exact.gradients)
    assert 1e-5 < error < 2e-2
    adapted = learner.adapt((X[0, :5], Y[0, :5]))
    moved = adapted.get_weights()[0] - learner.model.get_weights()[0]
    assert adapted.get_weights()[0].dtype == np.float32
    # A number of bfloat16 ends in sixteen zeros.
    assert np.any(adapted.get_weights()[0].view("uint32") & 0xFFFF)
    assert np.abs(moved).max() > 1e-3
