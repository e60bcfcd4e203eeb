"""Checks of the arrays that a user's function yields: numbers that a cast leaves as they are."""

import numpy as np
import tensorflow as tf

from amaml_tf.errors import UsageError


def as_numbers(value: object, name: str, split: str) -> np.ndarray:
    """Returns what a function gave as an array of real numbers.

    Args:
        value: an array, a tensor, or lists of numbers.
        name: of the array in its episode, such as "support_x".
        split: that the episode is of.

    Raises:
        UsageError: it is no array of real numbers.
    """
    try:
        array = np.asarray(value)
    except ValueError as error:  # lists of different lengths
        raise UsageError(
            f"Expected {name} of split {split!r} to be an array of numbers, got lists that make "
            f"none ({' '.join(str(error).split()):.100}); give all rows the same length."
        ) from error
    if array.dtype.kind not in "biuf" and array.dtype != tf.bfloat16.as_numpy_dtype:
        raise UsageError(
            f"Expected {name} of split {split!r} to be an array of real numbers, got one of dtype "
            f"{array.dtype}; convert it."
        )
    return array


def as_dtype(array: np.ndarray, dtype: tf.DType, name: str, split: str) -> np.ndarray:
    """Returns an array of the given dtype with the same numbers, rounded if `dtype` is floating.

    Raises:
        UsageError: a finite number has no finite value in `dtype`, or one is no whole number and
            `dtype` is an integer type.
    """
    with np.errstate(over="ignore", invalid="ignore"):
        result = array.astype(dtype.as_numpy_dtype)
        if dtype.is_integer:
            wrong, came = result != array, "that are not"
        else:
            wrong = np.isfinite(array) & ~np.isfinite(result)
            came = "that are too large"
    if wrong.any():
        expected = "whole numbers" if dtype.is_integer else f"numbers that {dtype.name} can hold"
        raise UsageError(
            f"Expected {expected} in {name} of split {split!r}, got some {came}, such as "
            f"{array[wrong].flat[0]}; correct or scale them."
        )
    return result
