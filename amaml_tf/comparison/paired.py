"""Differences between methods on the same tasks."""

from collections.abc import Sequence

import numpy as np

from amaml_tf.evaluation import Estimate


def differences(values: Sequence[np.ndarray | None], sign: int) -> list[Estimate | None]:
    """Returns the mean difference between each method and the best one, task by task.

    Tasks differ much more than methods do, and all methods see the same tasks. So the interval of
    the difference is narrower than the intervals of the two means.

    Args:
        values: for each method, the metric of every task, of shape [tasks]; None for a method
            whose values are unknown.
        sign: 1 if small values are good, -1 if large ones are.

    Returns:
        For each method, its value minus that of the best, with the 95% interval over tasks; zeros
        for the best itself; None where the values are unknown or of other tasks than the best's.
    """
    known = [each for each in values if each is not None]
    if not known:
        return [None for _ in values]
    best = min(known, key=lambda each: sign * each.mean())
    return [
        None if each is None or each.size != best.size else Estimate.of(each - best)
        for each in values
    ]
