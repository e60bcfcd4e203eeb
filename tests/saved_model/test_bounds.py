"""The bound of a request on gradient evaluations: exactly so many are answered, one more is not."""

import numpy as np
import pytest
import tensorflow as tf

import amaml_tf as amaml
from amaml_tf.saved_model.adapting import Adapter
from amaml_tf.saved_model.bounds import Bounds, default_bounds
from amaml_tf.saved_model.interface import interface_of

RNG = np.random.default_rng(0)
X = tf.constant(RNG.normal(size=(6, 2)), tf.float32)
Y = tf.sin(X[:, :1])
SOLVERS = amaml.solvers


def adapter_of(solver, bounds=None, final_time=1.0):
    model = amaml.models.multilayer_perceptron((2,), 1, (4,), seed=0)
    flow = amaml.GradientFlow(final_time=final_time, solver=solver)
    learner = amaml.MetaLearner(model, amaml.algorithms.AdjointMAML(flow))
    learner.compile(loss="mse", jit_compile="off")
    interface = interface_of(
        learner.function,
        input_spec=None,
        target_spec=None,
        units=None,
        class_names=(),
        query_statistics="support",
    )
    bounds = bounds or default_bounds(learner.algorithm)
    return Adapter(learner.function, learner.algorithm, interface, bounds)


def adapted(adapter):
    found = adapter.adapt({"": X}, {"": Y}, None, adapter.final_time())
    return found.error.numpy().decode(), int(found.evaluations)


@pytest.mark.parametrize("kind", [SOLVERS.RungeKuttaChebyshev, SOLVERS.DormandPrince])
def test_right_at_the_bound(kind):
    error, count = adapted(adapter_of(kind()))
    assert error == ""
    assert count > 5
    error, again = adapted(adapter_of(kind(), Bounds(max_gradient_evaluations=count)))
    assert (error, again) == ("", count)
    error, _ = adapted(adapter_of(kind(), Bounds(max_gradient_evaluations=count - 1)))
    assert f"needs more than {count - 1} gradient evaluations, the bound" in error


@pytest.mark.parametrize(
    "solver",
    [
        SOLVERS.GradientDescent(0.3),
        SOLVERS.Heun(0.3),
        SOLVERS.RungeKutta4(0.3),
        SOLVERS.RungeKuttaChebyshev(step_size=0.3, num_stages=3),
        SOLVERS.RungeKuttaChebyshev(step_size=0.3, num_stages=3, order=1),
    ],
    ids=["gradient descent", "Heun", "Runge-Kutta 4", "stabilised", "stabilised, order 1"],
)
def test_steps_of_a_fixed_size_need_their_own_bound(solver):
    """Also if the last step is a shorter one."""
    adapter = adapter_of(solver)
    error, count = adapted(adapter)
    assert error == ""
    assert count == adapter.bounds.max_gradient_evaluations
