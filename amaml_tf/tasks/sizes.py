"""Sizes of tasks: numbers of examples or classes, fixed or drawn from a range for each episode."""

from __future__ import annotations

from typing import NamedTuple, TypeAlias

import tensorflow as tf

from amaml_tf.errors import UsageError

#: A number, or the smallest and the largest number of a range: `10` or `(1, 10)`.
Size: TypeAlias = int | tuple[int, int]


class SizeRange(NamedTuple):
    """The smallest and the largest number; they are equal if the size is fixed."""

    low: int
    high: int

    @property
    def varies(self) -> bool:
        """Whether the range has more than one number."""
        return self.low < self.high

    def draw(self, seed: tf.Tensor) -> tf.Tensor:
        """Returns a number of the range, int32 of shape []; all are equally likely."""
        return tf.random.stateless_uniform((), seed, self.low, self.high + 1, tf.int32)


def size_range(name: str, size: Size) -> SizeRange:
    """Returns the range that `size` stands for.

    Raises:
        UsageError: it is neither a positive number nor a range of positive numbers.
    """
    numbers = tuple(size) if isinstance(size, tuple | list) else (size, size)
    if len(numbers) != 2 or numbers[0] > numbers[1]:
        raise UsageError(
            f"Expected {name} to be a number, or the smallest and the largest number of a range, "
            f"got {size}; pass something like 10 or (1, 10)."
        )
    return SizeRange(*(require_positive(name, number) for number in numbers))


def require_positive(name: str, value: int) -> int:
    """Returns `value` if it is 1 or more; otherwise raises UsageError."""
    if value < 1:
        raise UsageError(f"Expected {name} to be 1 or more, got {value}; pass a positive number.")
    return value
