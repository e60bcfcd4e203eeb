"""The continuous adjoint by itself."""

import numpy as np
import pytest
import tensorflow as tf

from amaml_tf import solvers
from amaml_tf.flow.adjoint import _adjoint_system, continuous_adjoint, discrete_adjoint
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


def test_errors_are_relative_to_the_larger_of_two_adjoint_states_alone():
    """The column of the constants does not count, and neither does `atol`."""
    adjoint = _adjoint_system(None, None, [2, 1])  # type: ignore[arg-type]
    error, row, new_row = (
        tf.constant([values], tf.float64)
        for values in ([3.0, 4.0, 1e9], [6.0, 8.0, 1e9], [0.0, 20.0, 1e9])
    )
    np.testing.assert_allclose(adjoint.error_ratio(error, row, new_row, 0.1, 1e9), [2.5])
    np.testing.assert_allclose(adjoint.error_ratio(error, new_row, row, 0.1, 1e9), [2.5])


@pytest.mark.parametrize(("capacity", "recomputes"), [(96, False), (14, True)])
def test_segments_of_a_trajectory_change_nothing_but_the_evaluations(capacity, recomputes):
    """y' = -c y², in 24 steps: y = 1 / (1/y(0) + c t)."""
    starts, c, end, steps = np.array([[1.0], [2.0]]), np.array([[0.5], [1.0]]), 1.2, 24
    constant = tf.constant(c)
    solver = solvers.RungeKutta4(end / steps)
    system = System(
        lambda t, y: -constant * y**2,
        lambda t, y, v: -2 * constant * y * v,
        lambda t, y, v: (-2 * constant * y * v, (-(y**2) * v,)),
    )

    @tf.function
    def run():
        solved = integrate(
            solver, system, 0.0, end, tf.constant(starts), max_num_steps=steps, capacity=capacity
        )
        trajectory, one, none = solved.recorded, tf.ones([2, 1], tf.float64), (constant * 0,)
        accurate = solvers.DormandPrince(1e-8, 1e-10)
        return (
            discrete_adjoint(solver, system, trajectory, one, none),
            continuous_adjoint(solver, system, trajectory, one, none, accurate, 1000),
        )

    y = 1 / (1 / starts + c * end)
    discrete, continuous = run()
    for found in (discrete, continuous):
        np.testing.assert_allclose(found.state, (y / starts) ** 2, rtol=1e-4)
        np.testing.assert_allclose(found.constants[0], -end * y**2, rtol=1e-4)
        np.testing.assert_array_equal(found.diagnostics.status, COMPLETED)
        np.testing.assert_array_equal(found.diagnostics.growth, 1)
    np.testing.assert_array_equal(discrete.diagnostics.num_vector_jacobian_products, 4 * steps)
    recomputed = discrete.diagnostics.num_evaluations.numpy()
    interpolated = continuous.diagnostics.num_evaluations.numpy() - recomputed
    if recomputes:  # most states once, some twice; one derivative more for each segment
        assert np.all((recomputed > 2 * steps) & (recomputed < 12 * steps))
        assert np.all((interpolated > steps + 1) & (interpolated <= 2 * steps))
    else:
        np.testing.assert_array_equal(recomputed, 0)
        np.testing.assert_array_equal(interpolated, steps + 1)


def test_a_row_that_rests_costs_no_products():
    """Rows of DormandPrince have steps of their own: six products for each that a row took."""
    rates, solver = tf.constant([[1.0], [40.0]], tf.float64), solvers.DormandPrince(1e-4, 1e-6)
    system = System(
        lambda t, y: -rates * y, lambda t, y, v: -rates * v, lambda t, y, v: (-rates * v, ())
    )

    @tf.function
    def run():
        one = tf.ones([2, 1], tf.float64)
        solved = integrate(solver, system, 0.0, 1.0, one, max_num_steps=99, capacity=600)
        return solved.diagnostics, discrete_adjoint(solver, system, solved.recorded, one, ())

    forward, found = run()
    steps = forward.num_accepted_steps.numpy()
    assert steps[1] > steps[0] + 5
    np.testing.assert_array_equal(found.diagnostics.num_vector_jacobian_products, 6 * steps)
    np.testing.assert_allclose(found.state, np.exp(-rates), atol=1e-4)


def test_without_a_graph_too_a_run_can_be_reversed_twice():
    """Though its states are computed again into the rows that are free."""
    one = tf.ones([1, 1], tf.float64)
    solver = solvers.GradientDescent(0.1)
    system = System(
        lambda t, y: -(y**2), lambda t, y, v: -2 * y * v, lambda t, y, v: (-2 * y * v, ())
    )
    solved = integrate(solver, system, 0.0, 0.8, one, max_num_steps=8, capacity=4)
    state, expected = 1.0, 1.0
    for _ in range(8):
        state, expected = state - 0.1 * state**2, expected * (1 - 0.2 * state)
    for _ in range(2):
        found = discrete_adjoint(solver, system, solved.recorded, one, ())
        np.testing.assert_allclose(found.state, [[expected]], rtol=1e-14)
        assert found.diagnostics.num_evaluations > 0
