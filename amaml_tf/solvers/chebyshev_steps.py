"""A Runge-Kutta-Chebyshev step, and its derivative."""

from __future__ import annotations

from collections.abc import Callable

import tensorflow as tf

from amaml_tf.solvers.chebyshev_coefficients import Coefficients
from amaml_tf.solvers.method import Step
from amaml_tf.solvers.state_stack import Rows
from amaml_tf.solvers.system import System
from amaml_tf.solvers.tfp_solver import OneStepSolver


class ChebyshevSteps(OneStepSolver):
    """The steps of `RungeKuttaChebyshev`, which gives their sizes and numbers of stages.

    Equation numbers refer to Sommeijer, Shampine, Verwer, J. Comp. Appl. Math. 88 (1998) 315-326.
    """

    #: The number of stages of every step; None: steps differ.
    num_stages: int | None
    #: The coefficients of a stage: see `chebyshev_coefficients`.
    _coefficients: Callable[[tf.Tensor, tf.Tensor, tf.DType], Coefficients]

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
        # A pass evaluates f at Y_j, and makes Y_{j+1} of it. What a loop hands on lies in memory,
        # where the kernels of f read it: XLA would copy the arithmetic for Y_j into each of them.
        def stage(
            j: tf.Tensor,
            y: tf.Tensor,
            y_before: tf.Tensor,
            f0: tf.Tensor,
            f: tf.Tensor,
            rows: Rows | tuple[()],
        ) -> tuple[tf.Tensor | Rows | tuple[()], ...]:
            if isinstance(rows, Rows):
                at = tf.where(j < most, tf.minimum(row + j, rows.last), rows.last)
                rows = rows.write(at, y)
            f = system.derivative(self._time(time, step_size, num_stages, j), y)
            f0 = tf.where(j == 0, f, f0)
            new = self._state(num_stages, j + 1, step_size, (state, y, y_before), (f0, f))
            return j + 1, new, _copy(y, j), f0, f, rows

        most, first, start = self._most(num_stages), tf.constant(0), state
        if self.adaptive:
            # An adaptive step needs f at its end as well, and f at its start may be known.
            first, last = tf.cast(known, tf.int32), most
            start = self._state(num_stages, first, step_size, (state,) * 3, (derivative,) * 2)
            rows = rows if rows is None else rows.write(tf.minimum(row, rows.last), state)
        else:
            derivative, last = tf.zeros_like(state), most - 1
        _, new_state, _, derivative, new_derivative, written = tf.while_loop(
            lambda j, *_: j <= last,
            stage,
            (first, start, state, derivative, derivative, () if rows is None else rows),
            maximum_iterations=self.max_num_stages + 1,
        )
        if not self.adaptive:
            return Step(new_state, state[:, :0], state[:, :0], None, written or None)
        # Equation (2.8), the error of a step
        mean = 0.5 * (derivative + new_derivative)
        error = 0.8 * (state - new_state + step_size[:, tf.newaxis] * mean)
        return Step(new_state, derivative, new_derivative, error, written or None)

    def _state(
        self,
        num_stages: tf.Tensor,
        j: tf.Tensor,
        step_size: tf.Tensor,
        states: tuple[tf.Tensor, tf.Tensor, tf.Tensor],
        slopes: tuple[tf.Tensor, tf.Tensor],
    ) -> tf.Tensor:
        """Returns Y_j of equations (2.2), (2.3), of Y_0, Y_{j-1}, Y_{j-2}, and of F_0, F_{j-1}."""
        (start, y, y_before), (f0, f) = states, slopes
        c = self._coefficients(num_stages, j, start.dtype)
        moved = step_size[:, tf.newaxis] * (c.mu_tilde * f + c.gamma_tilde * f0)
        return (1 - c.mu - c.nu) * start + c.mu * y + c.nu * y_before + moved

    def _time(
        self, time: tf.Tensor, step_size: tf.Tensor, num_stages: tf.Tensor, j: tf.Tensor
    ) -> tf.Tensor:
        """Returns the time of stage j."""
        return time + step_size * self._coefficients(num_stages, j, time.dtype).c

    def _most(self, num_stages: tf.Tensor) -> tf.Tensor:
        # A loop whose length is known when it is compiled asks no accelerator whether it is over.
        fixed = self.num_stages
        return tf.reduce_max(num_stages) if fixed is None else tf.constant(fixed)

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
        # The recursion of `step`, backwards. `y_bar` is the cotangent of Y_j, and `pending` is the
        # part of that of Y_{j-1} from Y_{j+1}. Y_0 and F_0 enter every stage: theirs are sums.
        h = step_size[:, tf.newaxis]

        def before(
            j: tf.Tensor, y_bar: tf.Tensor, f0_bar: tf.Tensor
        ) -> tuple[Coefficients, tf.Tensor, tf.Tensor]:
            """Returns the coefficients of stage j, Y_{j-1} and the cotangent of F_{j-1}."""
            c = self._coefficients(num_stages, j, cotangent.dtype)
            f_bar = c.mu_tilde * h * y_bar + tf.cast(j == 1, h.dtype) * f0_bar
            return c, rows.read(tf.maximum(row + j - 1, 0)), f_bar

        def stage(
            j: tf.Tensor,
            at: tuple[Coefficients, tf.Tensor, tf.Tensor],
            y_bar: tf.Tensor,
            pending: tf.Tensor,
            y0_bar: tf.Tensor,
            f0_bar: tf.Tensor,
            constants: tuple[tf.Tensor, ...],
        ) -> tuple[tf.Tensor | tuple[tf.Tensor, ...], ...]:
            c, y, f_bar = at
            stage_time = self._time(time, step_size, num_stages, j - 1)
            from_f, from_constants = system.vjp(stage_time, y, f_bar)
            constants = tuple(a + b for a, b in zip(constants, from_constants, strict=True))
            y0_bar += (1 - c.mu - c.nu) * y_bar
            f0_bar += c.gamma_tilde * h * y_bar
            pending, y_bar = c.nu * y_bar, pending + c.mu * y_bar + from_f
            at = before(j - 1, y_bar, f0_bar)
            return j - 1, at, y_bar, pending, y0_bar, f0_bar, constants

        zero, last = tf.zeros_like(cotangent), self._most(num_stages)
        _, _, y_bar, _, y0_bar, _, constants = tf.while_loop(
            lambda j, *_: j >= 1,
            stage,
            (last, before(last, cotangent, zero), cotangent, zero, zero, zero, constants),
            maximum_iterations=self.max_num_stages,
        )
        return y_bar + y0_bar, constants


def _copy(y: tf.Tensor, j: tf.Tensor) -> tf.Tensor:
    """Returns a copy of y, by an operation that no compiler can drop; j >= 0.

    LiteRT overwrites a variable of a loop before it hands it on as another one.
    """
    return tf.where(j < 0, tf.zeros_like(y), y)
