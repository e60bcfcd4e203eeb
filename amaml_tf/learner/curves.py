"""Query losses and outputs of a batch of tasks before, during and after their adaptation."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple, TypeAlias

import tensorflow as tf

from amaml_tf.algorithms.base import MetaDiagnostics
from amaml_tf.aliases import Outputs
from amaml_tf.episodes import Episodes, Examples, number_of_tasks
from amaml_tf.flow import failure
from amaml_tf.functional.model import FunctionalModel, State
from amaml_tf.functional.query_statistics import Queries
from amaml_tf.solvers.diagnostics import Diagnostics

#: Continues adaptation: takes (support, state, adapted, stretch, longest stretch), and returns what
#: `Algorithm.advance` returns.
Advance: TypeAlias = Callable[
    [Examples, State, tf.Tensor, tf.Tensor, float], tuple[tf.Tensor, Diagnostics]
]


class Predictions(NamedTuple):
    """Query losses `[B]` and outputs (task axis first) before and after adaptation.

    Attributes:
        before: (losses, outputs) of the initialization.
        after: (losses, outputs) of the adapted models.
        diagnostics: of the adaptation.
    """

    before: tuple[tf.Tensor, Outputs]
    after: tuple[tf.Tensor, Outputs]
    diagnostics: MetaDiagnostics


class Point(NamedTuple):
    """A batch of tasks at one time of their adaptation.

    Attributes:
        losses: `[B]`, query losses.
        outputs: outputs of the model on the query sets, task axis first.
        diagnostics: of the stretch from the previous point to this one, per task.
    """

    losses: tf.Tensor
    outputs: Outputs
    diagnostics: Diagnostics


def points_along(
    function: FunctionalModel,
    advance: Advance,
    query: Queries,
    episodes: Episodes,
    times: Sequence[float],
    on_failure: str,
    query_statistics: str,
) -> Iterator[Point]:
    """Yields a `Point` for each of the `times` of one adaptation of a batch of episodes.

    Args:
        function: model and loss.
        advance: continues the adaptation.
        query: gives query losses and outputs.
        episodes: a batch.
        times: above 0, in increasing order.
        on_failure: "raise" or "drop".
        query_statistics: see `Queries`.

    Raises:
        AdaptationError: if a task fails and `on_failure` is "raise".
    """
    support = episodes[0]
    state, (adapted, held) = function.state(), function.initialization(number_of_tasks(episodes))
    longest = max(after - before for before, after in itertools.pairwise([0.0, *times]))
    before = 0.0
    for time in times:
        stretch = tf.constant(time - before, function.dtype)
        adapted, diagnostics = advance(support, state, adapted, stretch, longest)
        diagnostics = diagnostics._replace(time=diagnostics.time + before)
        if on_failure == "raise":
            failure.check(diagnostics, time)
        losses, outputs = query(adapted, held, state, episodes, query_statistics)
        yield Point(losses, outputs, diagnostics)
        before = time
