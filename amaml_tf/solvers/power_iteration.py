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
    number of products, `[B]`. A row stops when its radius changes by no more than 1% in an
    iteration, whatever other rows do.
    """
    tiny = tf.constant(np.finfo(state.dtype.as_numpy_dtype).tiny ** 0.5, state.dtype)

    def unit(vector: tf.Tensor) -> tf.Tensor:
        return vector / tf.maximum(tf.norm(vector, axis=-1, keepdims=True), tiny)

    def iterate(
        radius: tf.Tensor, vector: tf.Tensor, moving: tf.Tensor, count: tf.Tensor
    ) -> tuple[tf.Tensor, ...]:
        product = system.jacobian_product(time, state, vector)
        now = tf.norm(product, axis=-1)
        now = tf.where(moving & tf.math.is_finite(now), now, radius)
        vector = tf.where((moving & (now > tiny))[:, tf.newaxis], unit(product), vector)
        count += tf.cast(moving, tf.int32)
        return now, vector, moving & (tf.abs(now - radius) > 0.01 * now), count

    new_radius, new_vector, _, count = tf.while_loop(
        lambda radius, vector, moving, count: tf.reduce_any(moving),
        iterate,
        (radius, unit(vector), wanted, tf.zeros_like(wanted, tf.int32)),
        maximum_iterations=max_iterations,
    )
    finite = wanted & tf.reduce_all(tf.math.is_finite(new_vector), axis=-1)
    return (
        tf.where(finite, new_radius, radius),
        tf.where(finite[:, tf.newaxis], new_vector, vector),
        count,
    )
