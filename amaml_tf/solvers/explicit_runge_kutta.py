"""Explicit Runge-Kutta methods given by a tableau, and the derivatives of their steps."""

from __future__ import annotations

import numpy as np
import tensorflow as tf

from amaml_tf.solvers.method import Memory, Step
from amaml_tf.solvers.state_stack import Rows
from amaml_tf.solvers.system import System
from amaml_tf.solvers.tfp_solver import OneStepSolver


class ExplicitRungeKutta(OneStepSolver):
    """An explicit Runge-Kutta method, given by the matrix `a` and the weights `b`.

    One step is `U_i = y + h sum_{j<i} a_ij f(U_j)`, `y' = y + h sum_i b_i f(U_i)`. Subclasses set
    the class attributes. An adaptive subclass evaluates one more stage, f at the end of the step.
    It enters the error estimate, and the next step starts with it.

    The loops over stages hand on where f is evaluated. It lies in memory then, where the kernels of
    f read it: XLA would copy the arithmetic for the stage state into each of them.
    """

    #: Matrix a `[S, S]`, strictly lower triangular; row i gives the state of stage i.
    a: np.ndarray
    #: Weights b `[S]`.
    b: np.ndarray
    #: Weights of the error estimate `[S + 1]`, or None.
    error_weights: np.ndarray | None = None

    @property
    def max_num_stages(self) -> int:  # type: ignore[override]
        """The number of stages of the tableau."""
        return len(self.b)

    def plan(self, memory: Memory, step_size: tf.Tensor) -> tf.Tensor:
        del memory
        return tf.fill(tf.shape(step_size), len(self.b))

    def step(
        self,
        system: System,
        time: tf.Tensor,
        state: tf.Tensor,
        derivative: tf.Tensor,
        known: tf.Tensor,
        step_size: tf.Tensor,
        num_stages: tf.Tensor,
        rows: Rows | None = None,
        row: tf.Tensor | int = 0,
    ) -> Step:
        del num_stages
        stages = len(self.b)
        a = tf.constant(np.vstack([self.a, self.b]), state.dtype)
        c = tf.reduce_sum(a, axis=1)
        h = step_size[:, tf.newaxis]
        # An adaptive method also evaluates f at the new state, which is stage 0 of the next step.
        count = stages + 1 if self.adaptive else stages
        first, slopes = tf.constant(0), _zeros(count, state)
        if self.adaptive:
            first = tf.cast(known, tf.int32)
            slopes = tf.tensor_scatter_nd_update(slopes, [[0]], [derivative])
            if rows is not None:
                rows = rows.write(tf.minimum(row, rows.last), state)

        def state_of(i: tf.Tensor, slopes: tf.Tensor) -> tf.Tensor:
            return state + h * tf.tensordot(tf.gather(a, i), slopes[:stages], 1)

        def stage(
            i: tf.Tensor, stage_state: tf.Tensor, slopes: tf.Tensor, rows: Rows | tuple[()]
        ) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor, Rows | tuple[()]]:
            if isinstance(rows, Rows):
                rows = rows.write(tf.minimum(row + i, rows.last), stage_state)
            slope = system.derivative(time + tf.gather(c, i) * step_size, stage_state)
            slopes = tf.tensor_scatter_nd_update(slopes, [[i]], [slope])
            return i + 1, state_of(tf.minimum(i + 1, stages), slopes), slopes, rows

        _, _, slopes, written = tf.while_loop(
            lambda i, *_: i < count,
            stage,
            (first, state_of(first, slopes), slopes, () if rows is None else rows),
            maximum_iterations=count,
        )
        new_state = state + h * tf.tensordot(a[stages], slopes[:stages], 1)
        if not self.adaptive:
            return Step(new_state, state[:, :0], state[:, :0], None, written or None)
        weights = tf.constant(self.error_weights, state.dtype)
        error = h * tf.tensordot(weights, slopes, 1)
        return Step(new_state, slopes[0], slopes[stages], error, written or None)

    def step_vjp(
        self,
        system: System,
        time: tf.Tensor,
        step_size: tf.Tensor,
        num_stages: tf.Tensor,
        rows: Rows,
        row: tf.Tensor,
        cotangent: tf.Tensor,
        constants: tuple[tf.Tensor, ...],
    ) -> tuple[tf.Tensor, tuple[tf.Tensor, ...]]:
        # With U_bar_i the cotangent of stage state i:
        #   f_bar_i = h (b_i y_bar + sum_{m>i} a_mi U_bar_m),   U_bar_i = (df/dy)^T f_bar_i
        del num_stages
        stages = len(self.b)
        a, b = tf.constant(self.a, cotangent.dtype), tf.constant(self.b, cotangent.dtype)
        c = tf.reduce_sum(a, axis=1)
        h = step_size[:, tf.newaxis]

        def before(i: tf.Tensor, stage_bars: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
            """Returns the state of stage i, and the cotangent of f there."""
            i = tf.maximum(i, 0)
            from_later = tf.tensordot(tf.gather(a, i, axis=1), stage_bars, 1)
            return rows.read(row + i), h * (tf.gather(b, i) * cotangent + from_later)

        def stage(
            i: tf.Tensor,
            at: tuple[tf.Tensor, tf.Tensor],
            stage_bars: tf.Tensor,
            constants: tuple[tf.Tensor, ...],
        ) -> tuple[tf.Tensor | tuple[tf.Tensor, ...], ...]:
            stage_bar, from_constants = system.vjp(time + tf.gather(c, i) * step_size, *at)
            constants = tuple(x + y for x, y in zip(constants, from_constants, strict=True))
            stage_bars = tf.tensor_scatter_nd_update(stage_bars, [[i]], [stage_bar])
            return i - 1, before(i - 1, stage_bars), stage_bars, constants

        last, stage_bars = tf.constant(stages - 1), _zeros(stages, cotangent)
        _, _, stage_bars, constants = tf.while_loop(
            lambda i, *_: i >= 0,
            stage,
            (last, before(last, stage_bars), stage_bars, constants),
            maximum_iterations=stages,
        )
        return cotangent + tf.reduce_sum(stage_bars, axis=0), constants


def _zeros(count: int, rows: tf.Tensor) -> tf.Tensor:
    """Returns zeros `[count, B, P]` for `rows` `[B, P]`, whose number may be unknown so far."""
    num_rows = tf.shape(rows)[0] if rows.shape[0] is None else rows.shape[0]
    return tf.zeros([count, num_rows, rows.shape[1]], rows.dtype)
