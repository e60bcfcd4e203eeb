"""Differences between methods on the same tasks."""

from collections.abc import Sequence

import numpy as np

from amaml_tf.evaluation import Estimate


def differences(values: Sequence[np.ndarray | None], sign: int) -> list[Estimate | None]:
    """The mean difference of each method to the best one, task by task.

    Tasks differ by much more than methods do, and all methods see the same ones: the interval of
    the difference is narrower than those of the two means.

    Args:
        values: of each method, the metric of every task, of shape [tasks]; None for a method
            whose values are not known.
        sign: 1 if small values are good, -1 if large ones are.

    Returns:
        For each method its value minus that of the best, with the 95% interval over tasks; zeros
        for the best itself; None where values are unknown, or of other tasks than the best one's.
    """
    known = [each for each in values if each is not None]
    if not known:
        return [None for _ in values]
    best = min(known, key=lambda each: sign * each.mean())
    return [
        None if each is None or each.size != best.size else Estimate.of(each - best)
        for each in values
    ]
