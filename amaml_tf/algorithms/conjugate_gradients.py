"""Conjugate gradients for many linear systems at once, one per row."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import tensorflow as tf


class _Solve(NamedTuple):
    """The state of the iteration: three fields `[B, P]`, then three `[B]`."""

    solution: tf.Tensor
    residual: tf.Tensor
    direction: tf.Tensor
    squared_residual: tf.Tensor
    running: tf.Tensor
    num_products: tf.Tensor


def solve(
    product: Callable[[tf.Tensor], tf.Tensor], right_side: tf.Tensor, max_num_steps: int
) -> tuple[tf.Tensor, tf.Tensor]:
    """Solves A x = b approximately in every row, for symmetric A.

    A row stops when its residual is as small as rounding errors, or when A is not positive along
    the current direction. It then keeps the solution in the space searched so far, or b itself if
    this is the first direction (Nocedal and Wright, "Numerical Optimization", algorithm 7.1).

    Args:
        product: maps vectors `[B, P]` to their products with A.
        right_side: b, `[B, P]`.
        max_num_steps: cap on the steps, >= 1; each takes one product.

    Returns:
        x `[B, P]`, and the number of products of each row, int32 `[B]`. x is NaN where b is NaN.
    """
    # Scaled to length 1, because squares of small gradients would underflow.
    size = tf.norm(right_side, axis=-1, keepdims=True)
    unit = tf.math.divide_no_nan(right_side, size)
    tolerance = float(np.finfo(right_side.dtype.as_numpy_dtype).eps) ** 2
    squared = _dot(unit, unit)
    start = _Solve(
        solution=tf.zeros_like(unit),
        residual=unit,
        direction=unit,
        squared_residual=squared,
        running=squared != 0,  # true for NaN
        num_products=tf.zeros_like(squared, tf.int32),
    )

    def condition(step: tf.Tensor, at: _Solve) -> tf.Tensor:
        return (step < max_num_steps) & tf.reduce_any(at.running)

    def body(step: tf.Tensor, at: _Solve) -> tuple[tf.Tensor, _Solve]:
        image = product(at.direction)
        curvature = _dot(at.direction, image)
        convex = at.running & (curvature > 0)
        length = tf.math.divide_no_nan(at.squared_residual, curvature)[:, tf.newaxis]
        solution = at.solution + length * at.direction
        residual = at.residual - length * image
        squared = _dot(residual, residual)
        turn = tf.math.divide_no_nan(squared, at.squared_residual)[:, tf.newaxis]
        return step + 1, _Solve(
            solution=tf.where(convex[:, tf.newaxis], solution, at.solution),
            residual=residual,
            direction=residual + turn * at.direction,
            squared_residual=squared,
            running=convex & (squared > tolerance),
            num_products=at.num_products + tf.cast(at.running, tf.int32),
        )

    _, end = tf.while_loop(
        condition, body, (tf.constant(0), start), maximum_iterations=max_num_steps
    )
    nothing_found = tf.reduce_all(end.solution == 0, axis=-1, keepdims=True)
    return size * tf.where(nothing_found, unit, end.solution), end.num_products


def _dot(one: tf.Tensor, other: tf.Tensor) -> tf.Tensor:
    return tf.reduce_sum(one * other, axis=-1)
