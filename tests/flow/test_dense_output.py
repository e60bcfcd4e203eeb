"""Interpolation between the steps of a trajectory: exact at the nodes, of the order it says."""

import numpy as np
import pytest
import tensorflow as tf

from amaml_tf.flow.dense_output import DenseOutput
from amaml_tf.flow.segments import Segment
from amaml_tf.solvers.state_stack import StateStack
from amaml_tf.solvers.system import System
from amaml_tf.solvers.trajectory import Trajectory

# dy/dt = -y², y = 1 / (1/y0 + t)
STARTS = np.array([1.0, 2.0])
SYSTEM = System(
    derivative=lambda t, y: -(y**2),
    jacobian_product=lambda t, y, v: -2 * y * v,
    second_derivative=lambda t, y, f: -2 * y * f,
)


def exact(time):
    return (1 / (1 / STARTS + time))[..., np.newaxis]


def dense_output(num_steps, order, system=SYSTEM, exact=exact):
    """Of [0, 1] in equal steps, between states that have no error; the second row rests once."""
    h = 1 / num_steps
    times = np.stack([np.arange(num_steps) * h] * 2, axis=1)
    sizes = np.full_like(times, h)
    # In pass 1 the second row does not move, and catches up with a step of 2h.
    sizes[1, 1], times[2, 1], sizes[2, 1] = 0, h, 2 * h
    states = np.concatenate([exact(times), exact(np.array([1.0, 1.0]))[np.newaxis]])
    trajectory = Trajectory(
        stack=StateStack.of(tf.constant(states)),
        times=tf.constant(times),
        step_sizes=tf.constant(sizes),
        num_stages=tf.ones(times.shape, tf.int32),
        offsets=tf.range(num_steps),
        num_steps=tf.constant(num_steps),
        final_time=tf.ones([2], tf.float64),
        final_state=tf.constant(states[-1]),
    )
    zero = tf.constant(0)
    segment = Segment(
        zero, trajectory.num_steps, trajectory.stack.rows, zero, trajectory, trajectory.final_state
    )
    return DenseOutput.of(system, segment, order)


def largest_error(num_steps, order):
    output = dense_output(num_steps, order)
    times = np.linspace(0, 1, 301)
    return max(
        np.abs(output.at(tf.constant([t, t], tf.float64)) - exact(np.array([t, t]))).max()
        for t in times
    )


@pytest.mark.long
@pytest.mark.parametrize(("order", "local_order"), [(2, 4), (4, 4), (5, 6)])
def test_order(order, local_order):
    errors = [largest_error(num_steps, order) for num_steps in (32, 64, 128)]
    rates = np.log2(np.divide(errors[:-1], errors[1:]))
    # The row that takes a step twice as long dominates: its order is what counts.
    assert rates[-1] == pytest.approx(local_order, abs=0.4)


@pytest.mark.parametrize(("order", "degree"), [(4, 3), (5, 5)])
def test_polynomials_of_its_degree_are_exact(order, degree):
    p = np.polynomial.Polynomial([1.0, -2, 3, -1, 2, -3][: degree + 1])

    def values(k, time):
        return p.deriv(k)(np.asarray(time))[..., np.newaxis]

    system = System(
        lambda t, y: tf.constant(values(1, t)),
        lambda t, y, v: tf.zeros_like(v),
        second_derivative=lambda t, y, f: tf.constant(values(2, t)),
    )
    output = dense_output(4, order, system, lambda time: values(0, time))
    for t in (0.0, 0.1, 0.25, 0.3, 0.45, 0.6, 0.99, 1.0):
        times = tf.constant([t, 1 - t], tf.float64)
        np.testing.assert_allclose(output.at(times), values(0, times), rtol=1e-12)


def test_nodes_are_exact():
    output = dense_output(8, 5)
    for t in (0.0, 0.5, 1.0):
        np.testing.assert_allclose(
            output.at(tf.constant([t, t], tf.float64)), exact(np.array([t, t])), rtol=1e-14
        )


def test_a_system_without_second_derivative_is_told():
    output = dense_output(8, 2)
    with pytest.raises(ValueError, match="second_derivative"):
        DenseOutput.of(SYSTEM._replace(second_derivative=None), output.segment, 5)
