"""The continuous adjoint by itself."""

import numpy as np
import pytest
import tensorflow as tf

from amaml_tf import solvers
from amaml_tf.flow.adjoint import continuous_adjoint
from amaml_tf.solvers.diagnostics import COMPLETED
from amaml_tf.solvers.loop import integrate
from amaml_tf.solvers.system import System


@pytest.mark.parametrize("scale", [1e-9, 1e9])
def test_the_size_of_the_adjoint_state_changes_neither_work_nor_relative_error(scale):
    rates = tf.constant([1.0, 20.0], tf.float64)
    solver = solvers.RungeKuttaChebyshev(rtol=1e-4, atol=1e-6)
    system = System(
        lambda t, y: -rates * y, lambda t, y, v: -rates * v, lambda t, y, v: (-rates * v, ())
    )

    @tf.function
    def run(cotangent):
        start = tf.ones([1, 2], tf.float64)
        solved = integrate(solver, system, 0.0, 1.0, start, max_num_steps=400, capacity=400)
        tf.debugging.assert_equal(solved.diagnostics.status, COMPLETED)
        return continuous_adjoint(solver, system, solved.recorded, cotangent, (), solver, 400)

    one, scaled = (run(tf.constant([[size, size]], tf.float64)) for size in (1.0, scale))
    np.testing.assert_allclose(scaled.state / scale, one.state, rtol=1e-6)
    np.testing.assert_allclose(one.state, [np.exp(-rates)], atol=1e-3)
    np.testing.assert_array_equal(
        scaled.diagnostics.num_vector_jacobian_products,
        one.diagnostics.num_vector_jacobian_products,
    )
