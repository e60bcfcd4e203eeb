"""Ways to adapt in an evaluation: the algorithm's own, to given times, or by an optimizer."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Iterable, Iterator, Sequence

import keras
import tensorflow as tf

from amaml_tf.aliases import Outputs
from amaml_tf.episodes import Episodes
from amaml_tf.errors import UsageError
from amaml_tf.evaluation.fine_tuning import FineTuning
from amaml_tf.functional.query_statistics import require_query_statistics
from amaml_tf.learner.curves import Point
from amaml_tf.learner.meta_learner import MetaLearner


@dataclasses.dataclass(frozen=True)
class Way:
    """A way to adapt.

    Attributes:
        unit: unit of the curve, "time" or "step".
        ends: the times or steps to measure at, without 0.
        points: maps a batch of episodes to the query losses and outputs before adaptation, and to
            one `Point` for every end. The points come one by one, so that not all outputs are kept.
    """

    unit: str
    ends: tuple[float, ...]
    points: Callable[[Episodes], tuple[tuple[tf.Tensor, Outputs], Iterable[Point]]]


def way_of(
    learner: MetaLearner,
    times: Sequence[float] | None,
    optimizer: keras.optimizers.Optimizer | None,
    steps: Sequence[int] | None,
    all_layers: bool,
    query_statistics: str,
) -> Callable[[], Way]:
    """Returns a function that gives the current way to adapt: a learned final time changes."""
    require_query_statistics(query_statistics)
    if (optimizer is None) != (steps is None) or (times is not None and steps is not None):
        given = {"times": times, "optimizer": optimizer, "steps": steps}
        names = " and ".join(name for name, value in given.items() if value is not None)
        raise UsageError(
            "Expected times, or an optimizer and its steps, or none of these, got "
            f"{names}; leave out or add arguments until it is one of these. For steps of gradient "
            "descent, pass times that are multiples of the step size, or keras.optimizers.SGD."
        )

    def before(batch: Episodes) -> tuple[tf.Tensor, Outputs]:
        return learner.predict_before(batch, query_statistics=query_statistics)

    if optimizer is not None and steps is not None:
        numbers = tuple(map(int, _in_order("steps", steps)))
        fine_tuning = FineTuning(learner, optimizer, all_layers, query_statistics)
        run = Way("step", numbers, lambda b: (before(b), fine_tuning.points(b, numbers)))
        return lambda: run
    if times is not None:
        ends = tuple(map(float, _in_order("times", times)))
        along = functools.partial(
            learner.predict_along, times=ends, query_statistics=query_statistics
        )
        run = Way("time", ends, lambda b: (before(b), along(b)))
        return lambda: run

    def own(batch: Episodes) -> tuple[tuple[tf.Tensor, Outputs], Iterator[Point]]:
        predictions = learner.predict_episodes(batch, query_statistics=query_statistics)
        diagnostics = predictions.diagnostics.forward
        return predictions.before, iter([Point(*predictions.after, diagnostics)])

    return lambda: Way("time", (float(learner.algorithm.final_time()),), own)


def _in_order(name: str, numbers: Sequence[float]) -> list[float]:
    """Returns the numbers above 0, each once, in increasing order; 0 is measured anyway."""
    ends = sorted(set(numbers) - {0})
    if not ends or not ends[0] > 0 or not math.isfinite(ends[-1]):
        raise UsageError(
            f"Expected {name} of 0 or more, one of them above 0, got {tuple(numbers)}; pass "
            "numbers such as 10, 100, 1000."
        )
    return ends
