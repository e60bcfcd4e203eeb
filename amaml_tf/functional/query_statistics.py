"""Whose statistics batch normalization uses on the query sets of a batch of tasks."""

from __future__ import annotations

import tensorflow as tf

from amaml_tf.aliases import Outputs, Tensors
from amaml_tf.episodes import Episodes, Examples
from amaml_tf.errors import UsageError
from amaml_tf.functional.model import FunctionalModel, State
from amaml_tf.functional.parameters import is_noise

#: Those of the support set, as after `learner.adapt`, or those of all queries of the task together
#: (the transductive setting of the papers).
QUERY_STATISTICS = ("support", "batch")


class Queries:
    """Query losses and outputs of a batch of tasks, by the statistics that are asked for.

    Args:
        function: model and loss.
    """

    def __init__(self, function: FunctionalModel) -> None:
        self._function = function
        self._by_support: _SupportStatistics | None = None

    def __call__(
        self,
        adapted: tf.Tensor,
        held: tf.Tensor,
        state: State,
        episodes: Episodes,
        query_statistics: str,
    ) -> tuple[tf.Tensor, Outputs]:
        """Returns the query losses `[B]` and the outputs of the model.

        Args:
            adapted: `[B, P]`, adapted parameters.
            held: `[B, Q]`, the others.
            state: values of the non-trainable variables.
            episodes: a batch.
            query_statistics: one of `QUERY_STATISTICS`. A model that always uses its stored
                statistics goes on to do so.

        Raises:
            UsageError: there are no such statistics.
        """
        require_query_statistics(query_statistics)
        function = self._function
        stored = [v for v in function.model.non_trainable_variables if not is_noise(v)]
        if query_statistics == "batch" or not function.batch_statistics or not stored:
            return function.query(adapted, held, state, *episodes[1])
        if self._by_support is None:
            self._by_support = _SupportStatistics(function)
        return self._by_support.query_episodes(adapted, held, state, episodes)


def require_query_statistics(name: str) -> None:
    """Raises UsageError unless `name` is one of `QUERY_STATISTICS`."""
    if name not in QUERY_STATISTICS:
        raise UsageError(
            f"Expected query_statistics to be one of {QUERY_STATISTICS}, got {name!r}; pass one of "
            "them."
        )


class _SupportStatistics(FunctionalModel):
    """A model whose batch normalization uses the statistics of the support set on the query set.

    Args:
        function: model and loss; it normalizes by the batch at hand.
    """

    def __init__(self, function: FunctionalModel) -> None:
        super().__init__(
            function.model,
            function.loss.given,
            loss_weights=function.loss.given_weights,
            batch_statistics=False,
            adapted=function.adapted,
            vectorize=function.vectorize,
        )
        self._by_batch = function

    def arrange(self, vectorize: bool, **options: bool) -> None:
        """As in `FunctionalModel`."""
        super().arrange(vectorize, **options)
        self._queried = tf.function(self._query_after_support, autograph=False)

    def query_episodes(
        self, adapted: tf.Tensor, held: tf.Tensor, state: State, episodes: Episodes
    ) -> tuple[tf.Tensor, Outputs]:
        """Returns the query losses `[B]` and the outputs of the model."""
        if self.vectorize != self._by_batch.vectorize:
            self.arrange(self._by_batch.vectorize)
        support, query = map(tuple, episodes)
        return self._queried(adapted, held, state, support, query)

    def _query_after_support(
        self, adapted: tf.Tensor, held: tf.Tensor, state: State, support: Examples, query: Examples
    ) -> tuple[tf.Tensor, Outputs]:
        size = len(support)

        def one(task: tuple[Tensors, ...]) -> tuple[tf.Tensor, Outputs]:
            vector, rest, *examples = task
            parameters = self.unravel(vector, rest)
            statistics = self._by_batch.statistics_of(parameters, state, examples[:size])
            return self._task_loss(vector, rest, statistics, examples[size:], adapting=False)

        return self._map(one, (adapted, held, *support, *query))
