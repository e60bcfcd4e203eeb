"""What the adaptive solvers share: tolerances, factors, and the first step."""

from __future__ import annotations

from typing import Any

import tensorflow as tf


class StepSizeControl:
    """Tolerances and step size factors, checked where they enter.

    Args:
        rtol: relative tolerance per entry of the state, > 0.
        atol: absolute tolerance per entry of the state, > 0.
        first_step_size: the first step to try, > 0; None leaves the choice to the solver.
        safety_factor: in (0, 1]; the next step is the one expected to have this fraction of the
            tolerated error (to the power of 1 / error order).
        min_step_size_factor: in (0, 1); a step shrinks at most by this factor.
        max_step_size_factor: > 1; a step grows at most by this factor.
        max_num_steps: cap on the attempted steps of a solve, >= 1.

    Raises:
        ValueError: if an argument is out of its range.
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
            "rtol": (rtol, rtol > 0, "above 0"),
            "atol": (atol, atol > 0, "above 0"),
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
            "max_num_steps": (max_num_steps, max_num_steps >= 1, "at least 1"),
        }
        for name, (value, accepted, expected) in in_range.items():
            if not accepted:
                raise ValueError(f"Expected {name} to be {expected}, got {value}.")
        self.rtol = float(rtol)
        self.atol = float(atol)
        self.first_step_size = first_step_size
        self.safety_factor = float(safety_factor)
        self.min_step_size_factor = float(min_step_size_factor)
        self.max_step_size_factor = float(max_step_size_factor)
        self.max_num_steps: Any = int(max_num_steps)

    def step_size_factor(self, error_ratio: tf.Tensor) -> tf.Tensor:
        """Returns by what to multiply a step whose error was `error_ratio` times the tolerance."""
        ratio = tf.maximum(error_ratio, 1e-10)
        factor = self.safety_factor * ratio ** (-1.0 / self.error_order)
        return tf.clip_by_value(factor, self.min_step_size_factor, self.max_step_size_factor)
