"""Base class of the adaptive solvers: tolerances, step size factors and the first step."""

from __future__ import annotations

import math

import tensorflow as tf

from amaml_tf.errors import UsageError
from amaml_tf.solvers.method import MOST_STEPS


class StepSizeControl:
    """The tolerances and step size factors of an adaptive solver, checked when it is created.

    Args:
        rtol: relative tolerance per entry of the state, > 0.
        atol: absolute tolerance per entry of the state, > 0.
        first_step_size: the first step to try, > 0; None leaves the choice to the solver.
        safety_factor: in (0, 1]; the next step is this fraction of the step whose expected error
            is the tolerance.
        min_step_size_factor: in (0, 1); the smallest factor by which a step changes.
        max_step_size_factor: > 1; the largest factor by which a step changes.
        max_num_steps: cap on the attempted steps of a solve, >= 1.

    Raises:
        UsageError: if an argument is out of its range.
    """

    #: The local error is O(step_size ** error_order).
    error_order: int

    def __init__(
        self,
        *,
        rtol: float,
        atol: float,
        first_step_size: float | None,
        safety_factor: float,
        min_step_size_factor: float,
        max_step_size_factor: float,
        max_num_steps: int,
    ) -> None:
        in_range = {
            "rtol": (rtol, 0 < rtol < math.inf, "above 0 and finite"),
            "atol": (atol, 0 < atol < math.inf, "above 0 and finite"),
            "first_step_size": (
                first_step_size,
                first_step_size is None or first_step_size > 0,
                "None or above 0",
            ),
            "safety_factor": (safety_factor, 0 < safety_factor <= 1, "in (0, 1]"),
            "min_step_size_factor": (
                min_step_size_factor,
                0 < min_step_size_factor < 1,
                "in (0, 1)",
            ),
            "max_step_size_factor": (max_step_size_factor, max_step_size_factor > 1, "above 1"),
            "max_num_steps": (
                max_num_steps,
                1 <= max_num_steps <= MOST_STEPS,
                f"from 1 to {MOST_STEPS}",
            ),
        }
        for name, (value, accepted, expected) in in_range.items():
            if not accepted:
                raise UsageError(f"Expected {name} to be {expected}, got {value}.")
        self.rtol = float(rtol)
        self.atol = float(atol)
        self.first_step_size = first_step_size
        self.safety_factor = float(safety_factor)
        self.min_step_size_factor = float(min_step_size_factor)
        self.max_step_size_factor = float(max_step_size_factor)
        self.max_num_steps: int | None = int(max_num_steps)

    def step_size_factor(self, error_ratio: tf.Tensor) -> tf.Tensor:
        """Returns the factor for a step size whose error was `error_ratio` times the tolerance."""
        ratio = tf.maximum(error_ratio, 1e-10)
        factor = self.safety_factor * ratio ** (-1.0 / self.error_order)
        return tf.clip_by_value(factor, self.min_step_size_factor, self.max_step_size_factor)
