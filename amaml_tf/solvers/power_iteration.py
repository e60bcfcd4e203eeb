"""The spectral radius of a Jacobian, by power iteration."""

from __future__ import annotations

import numpy as np
import tensorflow as tf

from amaml_tf.solvers.system import System


def power_iteration(
    system: System,
    time: tf.Tensor,
    state: tf.Tensor,
    radius: tf.Tensor,
    vector: tf.Tensor,
    wanted: tf.Tensor,
    max_iterations: int,
) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """Estimates the spectral radius of df/dy in the `wanted` rows, from an earlier estimate.

    Takes and returns the radius `[B]` and its vector `[B, P]`. The last value returned is the
    number of products, `[B]`. All rows stop together, when no radius changes by more than 1% in an
    iteration.
    """
    tiny = tf.constant(np.finfo(state.dtype.as_numpy_dtype).tiny ** 0.5, state.dtype)

    def unit(vector: tf.Tensor) -> tf.Tensor:
        return vector / tf.maximum(tf.norm(vector, axis=-1, keepdims=True), tiny)

    def iterate(
        i: tf.Tensor, radius: tf.Tensor, vector: tf.Tensor, moving: tf.Tensor
    ) -> tuple[tf.Tensor, ...]:
        del moving
        product = system.jacobian_product(time, state, vector)
        now = tf.norm(product, axis=-1)
        now = tf.where(tf.math.is_finite(now), now, radius)
        moving = tf.reduce_any(wanted & (tf.abs(now - radius) > 0.01 * now))
        vector = tf.where((now > tiny)[:, tf.newaxis], unit(product), vector)
        return i + 1, now, vector, moving

    count, new_radius, new_vector, _ = tf.while_loop(
        lambda i, radius, vector, moving: (i < max_iterations) & moving,
        iterate,
        (tf.constant(0), radius, unit(vector), tf.constant(True)),
        maximum_iterations=max_iterations,
    )
    finite = wanted & tf.reduce_all(tf.math.is_finite(new_vector), axis=-1)
    return (
        tf.where(finite, new_radius, radius),
        tf.where(finite[:, tf.newaxis], new_vector, vector),
        tf.where(wanted, count, 0),
    )
