"""Means with their 95% confidence intervals."""

from __future__ import annotations

import dataclasses
import functools
import math

import numpy as np
import numpy.typing as npt
import tensorflow_probability as tfp

from amaml_tf.errors import UsageError


@dataclasses.dataclass(frozen=True)
class Estimate:
    """A mean over n values, and half the width of its 95% confidence interval.

    The interval is mean ± t s / √n, where s is the standard deviation of the n values (with n - 1
    degrees of freedom) and t the 97.5% quantile of Student's distribution: 1.96 for many values.
    """

    mean: float
    half_width: float

    @classmethod
    def of(cls, values: npt.ArrayLike) -> Estimate:
        """Returns the estimate from one value per episode (or per task), at least two of them."""
        values = np.asarray(values, np.float64)
        if values.size < 2:
            raise UsageError(
                f"Expected the values of 2 or more episodes for an interval, got {values.size}; "
                "evaluate on more episodes, and on 2 or more tasks."
            )
        error = values.std(ddof=1) / math.sqrt(values.size)
        return cls(float(values.mean()), float(_quantile(values.size - 1) * error))

    def __str__(self) -> str:
        """Both numbers, rounded to the second significant digit of the half width."""
        if not (math.isfinite(self.half_width) and self.half_width > 0):
            return f"{self.mean:.4g} ± {self.half_width:.4g}"
        decimals = max(0, 1 - math.floor(math.log10(self.half_width)))
        return f"{self.mean:.{decimals}f} ± {self.half_width:.{decimals}f}"


@functools.cache
def _quantile(degrees_of_freedom: int) -> float:
    """Returns the 97.5% quantile of Student's distribution."""
    one = np.float64(1)
    student = tfp.distributions.StudentT(degrees_of_freedom * one, 0 * one, one)
    return float(student.quantile(0.975 * one))


def means_of_tasks(values: np.ndarray, tasks: np.ndarray) -> np.ndarray:
    """Returns the mean value of each task, because episodes of one task are not independent."""
    _, numbers = np.unique(tasks, return_inverse=True)
    return np.bincount(numbers, values) / np.bincount(numbers)
