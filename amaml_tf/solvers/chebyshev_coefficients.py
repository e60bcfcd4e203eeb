"""Coefficients of a Runge-Kutta-Chebyshev step of order 1 or 2 with any number of stages.

Equation numbers refer to Sommeijer, Shampine, Verwer, "RKC: an explicit solver for parabolic PDEs",
J. Comp. Appl. Math. 88 (1998) 315-326, which has order 2. Order 1 is in Verwer, Hundsdorfer,
Sommeijer, "Convergence properties of the Runge-Kutta-Chebyshev method", Numer. Math. 57 (1990)
157-178.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import tensorflow as tf


class Coefficients(NamedTuple):
    """Coefficients of stage j, each `[B, 1]`, and its time `c` as a fraction of the step, `[B]`."""

    mu: tf.Tensor
    nu: tf.Tensor
    mu_tilde: tf.Tensor
    gamma_tilde: tf.Tensor
    c: tf.Tensor


class _Chebyshev:
    """T_j(w0) and its first two derivatives; each row has its own w0 = 1 + epsilon / s**2.

    They are computed in closed form, in float64: T_j(cosh a) = cosh(j a). The step and its
    backward pass can therefore compute any stage directly, without a table.
    """

    least = 1  # stages
    damping: float  # epsilon of the papers
    w1: tf.Tensor  # of equation (2.4): the step reaches the time 1

    def __init__(self, num_stages: tf.Tensor) -> None:
        self.s = tf.cast(tf.maximum(num_stages, self.least), tf.float64)
        excess = self.damping / tf.square(self.s)
        self.w0 = 1 + excess
        self._sinh2 = excess * (2 + excess)
        self._sinh = tf.sqrt(self._sinh2)
        self._angle = tf.math.log1p(excess + self._sinh)

    def value(self, j: tf.Tensor) -> tf.Tensor:
        return tf.cosh(j * self._angle)

    def first(self, j: tf.Tensor) -> tf.Tensor:
        return j * tf.sinh(j * self._angle) / self._sinh

    def second(self, j: tf.Tensor) -> tf.Tensor:
        return (tf.square(j) * self.value(j) - self.w0 * self.first(j)) / self._sinh2

    def b(self, j: tf.Tensor) -> tf.Tensor:
        raise NotImplementedError

    def c(self, j: tf.Tensor) -> tf.Tensor:
        """Returns the time of stage j >= 0, as a fraction of the step."""
        raise NotImplementedError


class _Order1(_Chebyshev):
    damping = 0.05

    def __init__(self, num_stages: tf.Tensor) -> None:
        super().__init__(num_stages)
        self.w1 = self.value(self.s) / self.first(self.s)

    def b(self, j: tf.Tensor) -> tf.Tensor:
        return 1 / self.value(j)

    def c(self, j: tf.Tensor) -> tf.Tensor:
        return self.w1 * self.first(j) / self.value(j)


class _Order2(_Chebyshev):
    least = 2
    damping = 2.0 / 13.0

    def __init__(self, num_stages: tf.Tensor) -> None:
        super().__init__(num_stages)
        self.w1 = self.first(self.s) / self.second(self.s)

    def b(self, j: tf.Tensor) -> tf.Tensor:
        j = tf.maximum(j, 2.0)  # b_0 = b_1 = b_2
        return self.second(j) / tf.square(self.first(j))

    def c(self, j: tf.Tensor) -> tf.Tensor:
        later = tf.maximum(j, 2.0)
        c = self.w1 * self.second(later) / self.first(later)
        return tf.where(j < 0.5, tf.zeros_like(c), tf.where(j < 1.5, c / (4 * self.w0), c))


_OF_ORDER = {1: _Order1, 2: _Order2}


def coefficients(
    num_stages: tf.Tensor, j: tf.Tensor, dtype: tf.DType, order: int = 2
) -> Coefficients:
    """Returns the coefficients of stage j >= 0, equations (2.2) to (2.5).

    Before the first stage and after a row's last stage, the coefficients make Y_j = Y_{j-1}.
    """
    t = _OF_ORDER[order](num_stages)
    first, idle = tf.equal(j, 1), (j < 1) | (j > num_stages)
    j = tf.cast(j, tf.float64)
    b, b1, b2 = t.b(j), t.b(j - 1), t.b(j - 2)
    mu_tilde = 2 * b * t.w1 / b1
    zero, one = tf.zeros_like(b), tf.ones_like(b)
    columns = (
        tf.where(first | idle, one, 2 * b * t.w0 / b1),
        tf.where(first | idle, zero, -b / b2),
        tf.where(idle, zero, tf.where(first, b * t.w1, mu_tilde)),
        tf.where(first | idle, zero, -(1 - b1 * t.value(j - 1)) * mu_tilde),  # 0 in order 1
    )
    mu, nu, mu_tilde, gamma_tilde = (tf.cast(x, dtype)[:, tf.newaxis] for x in columns)
    c = tf.cast(t.c(tf.minimum(j, t.s)), dtype)  # c_s = 1
    return Coefficients(mu, nu, mu_tilde, gamma_tilde, c)


class Table:
    """The coefficients of every stage of steps of order `order`, from a table.

    A call gives what `coefficients` gives, for steps of as many stages as `counts` has. A table is
    quick, but not small if there are many counts. It is also for machines that lack the functions
    of the closed form, or double precision.
    """

    def __init__(self, counts: Sequence[int], order: int = 2) -> None:
        # The stages of a step are 0 to s; one more is idle, as all after it.
        stages = np.concatenate([np.arange(s + 2) for s in counts])
        sizes = np.array(counts) + 2
        with tf.init_scope():
            columns = coefficients(
                tf.constant(np.repeat(counts, sizes), tf.int32),
                tf.constant(stages, tf.int32),
                tf.float64,
                order,
            )
            self._rows = np.column_stack([column.numpy() for column in columns])
        # A row that takes no step has 0 stages; any coefficients will do.
        self._starts = np.zeros(max(counts) + 1, "int32")
        self._starts[list(counts)] = np.cumsum(sizes) - sizes

    def __call__(self, num_stages: tf.Tensor, j: tf.Tensor, dtype: tf.DType) -> Coefficients:
        """Returns the coefficients of stage j >= 0, as `coefficients` does."""
        row = tf.gather(tf.constant(self._starts), num_stages) + tf.minimum(j, num_stages + 1)
        columns = tf.gather(tf.constant(self._rows, dtype), row)
        mu, nu, mu_tilde, gamma_tilde = (columns[:, i : i + 1] for i in range(4))
        return Coefficients(mu, nu, mu_tilde, gamma_tilde, columns[:, 4])
