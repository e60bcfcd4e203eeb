"""The norms in which local errors are compared with tolerances."""

import numpy as np
import tensorflow as tf

from amaml_tf.flow.vector_field import relative_to_displacement
from amaml_tf.solvers.system import elementwise_error_ratio


def test_tolerances_are_relative_to_the_way_from_the_start():
    start = tf.constant([[100.0, 0.0], [3.0, 4.0]], tf.float64)
    ratio = relative_to_displacement(start)
    error = tf.constant([[3e-3, 4e-3], [0.0, 1e-3]], tf.float64)
    state = start + tf.constant([[0.3, 0.4], [0.0, 0.0]], tf.float64)
    new_state = start + tf.constant([[0.0, 0.0], [0.6, 0.8]], tf.float64)
    # Errors and ways are compared in norm: 5e-3 with 1e-2 * 0.5, and 1e-3 with 1e-2 * 1.
    np.testing.assert_allclose(ratio(error, state, new_state, 1e-2, 0.0), [1.0, 0.1], rtol=1e-9)
    atol = 1e-3
    expected = [5e-3 / (5e-3 + atol * np.sqrt(2)), 1e-3 / (1e-2 + atol * np.sqrt(2))]
    np.testing.assert_allclose(ratio(error, state, new_state, 1e-2, atol), expected, rtol=1e-9)


def test_tolerances_of_a_system_alone_are_relative_to_each_entry():
    state = tf.constant([[1.0, -2.0], [0.0, 0.0]], tf.float64)
    new_state = tf.constant([[-3.0, 1.0], [0.0, 4.0]], tf.float64)
    error = tf.constant([[0.4, -0.9], [0.1, 0.0]], tf.float64)
    # Scales: 0.1 + 0.1 * 3 and 0.1 + 0.1 * 2; 0.1 and 0.1 + 0.1 * 4.
    expected = [np.sqrt((1 + 9) / 2), np.sqrt(1 / 2)]
    found = elementwise_error_ratio(error, state, new_state, 0.1, 0.1)
    np.testing.assert_allclose(found, expected, rtol=1e-12)
