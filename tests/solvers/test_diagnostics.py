"""What a run did, counted over its parts."""

import numpy as np
import tensorflow as tf

import amaml_tf as amaml
from amaml_tf.solvers import diagnostics
from amaml_tf.solvers.loop import integrate
from amaml_tf.solvers.system import System


def test_two_runs_in_a_row_are_added_up():
    before = diagnostics.Diagnostics(*(tf.constant([i + 1, i + 9]) for i in range(8)))
    after = diagnostics.Diagnostics(*(tf.constant([20 * i + 3, -i]) for i in range(8)))
    found = diagnostics.total(before, after)
    for name in found._fields:
        one, other = getattr(before, name), getattr(after, name)
        if name in ("status", "time"):
            expected = other
        elif name in ("max_stages", "spectral_radius"):
            expected = np.maximum(one, other)
        else:
            expected = one.numpy() + other.numpy()
        np.testing.assert_array_equal(getattr(found, name), expected, err_msg=name)


def test_a_step_whose_error_alone_is_nan_is_tried_again_shorter():
    def ratio(error, state, new_state, rtol, atol):
        del error, rtol, atol
        length = (new_state - state)[:, 0]
        return tf.where(length > 0.3, tf.cast(np.nan, length.dtype), tf.zeros_like(length))

    system = System(lambda time, u: tf.ones_like(u), lambda *_: None, error_ratio=ratio)
    solver = amaml.solvers.DormandPrince(first_step_size=1.0)
    start = tf.zeros([1, 1], tf.float64)
    solution = integrate(solver, system, 0.0, 1.0, start, max_num_steps=100)
    assert solution.diagnostics.status[0] == diagnostics.COMPLETED
    assert solution.diagnostics.num_rejected_steps[0] > 0
    np.testing.assert_allclose(solution.state, [[1.0]], rtol=1e-12)
    # A tenth of what was tried, which is the interval, not of what would have been tried.
    eager = amaml.solvers.DormandPrince(first_step_size=10.0)
    once = integrate(eager, system, 0.0, 1.0, start, max_num_steps=1)
    assert once.diagnostics.status[0] == diagnostics.STEP_LIMIT
    assert once.warm_start is not None
    np.testing.assert_allclose(once.warm_start.step_size, [0.1], rtol=1e-12)
