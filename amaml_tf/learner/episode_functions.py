"""What a learner computes of episodes, beside the interface of Keras."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

import keras
import tensorflow as tf

from amaml_tf.algorithms.base import Algorithm, MetaDiagnostics, MetaGradients
from amaml_tf.aliases import Outputs
from amaml_tf.episodes import (
    Episodes,
    Examples,
    as_tensors,
    check_episodes,
    check_examples,
    number_of_tasks,
)
from amaml_tf.errors import UsageError
from amaml_tf.flow import failure
from amaml_tf.functional.execution import Execution
from amaml_tf.functional.model import FunctionalModel
from amaml_tf.learner.adapted_model import adapted_model
from amaml_tf.learner.curves import Point, Predictions, points_along
from amaml_tf.learner.episode_metrics import EpisodeMetrics
from amaml_tf.learner.programs import Programs, check
from amaml_tf.learner.remade_metrics import remade

F = TypeVar("F", bound=Callable[..., object])


def unconverted(function: F) -> F:
    """Decorates a function whose Python AutoGraph does not convert in a user's `tf.function`."""
    result: F = tf.autograph.experimental.do_not_convert(function)
    return result


class EpisodeFunctions:
    """Meta-gradients, predictions and adaptation of a `MetaLearner`."""

    algorithm: Algorithm
    on_failure: str
    _function: FunctionalModel | None
    _programs: Programs
    _episode_metrics: EpisodeMetrics

    @property
    def function(self) -> FunctionalModel:
        """The model and the loss as pure functions.

        Raises:
            UsageError: if the learner is not compiled.
        """
        if self._function is None:
            raise UsageError(
                "Expected a compiled MetaLearner. Call compile(optimizer=..., loss=...) first."
            )
        return self._function

    @unconverted
    def meta_gradients(self, episodes: Episodes) -> MetaGradients:
        """Returns the loss, the meta-gradient and the diagnostics of a batch of episodes.

        `result.loss` is a scalar, `result.gradients` a list aligned with
        `model.trainable_variables`, `result.diagnostics` a `MetaDiagnostics`.

        Raises:
            AdaptationError: as in `fit`.
        """
        episodes = as_tensors(episodes)
        check_episodes(episodes)
        result, _ = self._programs.meta_step(episodes, with_before=False)
        self._check(result.diagnostics)
        return result

    @unconverted
    def predict_episodes(
        self, episodes: Episodes, *, query_statistics: str = "batch"
    ) -> Predictions:
        """Returns query losses and outputs of a batch of episodes, before and after adaptation.

        Args:
            episodes: a batch.
            query_statistics: whose statistics batch normalization uses on the query sets: "batch",
                those of the queries (default, as in training), or "support", those of the support
                sets (as the models of `adapt`).

        Raises:
            AdaptationError: as in `fit`.
        """
        episodes = as_tensors(episodes)
        check_episodes(episodes)
        predictions = self._programs.predict(episodes, query_statistics)
        self._check(predictions.diagnostics)
        return predictions

    @property
    def execution(self) -> Execution:
        """How the tasks of a batch are executed; the first batch of episodes may still change it.

        Raises:
            UsageError: if the learner is not compiled.
        """
        _ = self.function
        return self._programs.execution

    @unconverted
    def predict_before(
        self, episodes: Episodes, *, query_statistics: str = "batch"
    ) -> tuple[tf.Tensor, Outputs]:
        """Returns query losses `[B]` and outputs of the initialization itself.

        Arguments: see `predict_episodes`.
        """
        episodes = as_tensors(episodes)
        check_episodes(episodes)
        return self._programs.query_before(episodes, query_statistics)

    def predict_along(
        self, episodes: Episodes, times: Sequence[float], *, query_statistics: str = "batch"
    ) -> Iterator[Point]:
        """Yields a `Point` for each of the `times` of one adaptation of a batch of episodes.

        The flow is solved from each time to the next, each stretch with its own steps. All points
        together therefore cost little more than the last one. `times` replace the final time.

        Args:
            episodes: a batch of episodes.
            times: above 0, in increasing order.
            query_statistics: see `predict_episodes`.

        Raises:
            AdaptationError: as in `fit`.
        """
        episodes = as_tensors(episodes)
        check_episodes(episodes)
        programs = self._programs
        yield from points_along(
            self.function,
            programs.advance,
            programs.query,
            episodes,
            times,
            self.on_failure,
            query_statistics,
        )

    @unconverted
    def adapt(self, support: Examples) -> keras.Model:
        """Adapts to one task and returns an ordinary, compiled Keras model for it.

        Args:
            support: (x, y) or (x, y, weight) of one task, without a task axis.

        Returns:
            A copy of the model with the adapted parameters. Its stored batch normalization
            statistics are those of the support set.

        Raises:
            AdaptationError: if the adaptation fails.
            UsageError: if it is called in a `tf.function`.
        """
        if tf.inside_function():
            raise UsageError(
                "Expected adapt outside of a tf.function, because it makes a Keras model; call "
                "adapt_many there, which gives parameters."
            )
        function, state = self.function, self.function.state()
        support = as_tensors(support)
        check_examples(support)
        parameters, diagnostics = self._programs.adapt_one(support, state)
        failure.check(diagnostics, self.algorithm.final_time())
        model = adapted_model(function, parameters, state, support)
        model.compile(
            # What compile takes by default. With a new name for each, TensorFlow would keep a
            # kernel for every variable of it.
            optimizer=keras.optimizers.RMSprop(name="rmsprop"),
            loss=function.loss.given,
            loss_weights=function.loss.given_weights,
            metrics=remade(self._episode_metrics.given),
            weighted_metrics=remade(self._episode_metrics.given_weighted),
        )
        return model

    @unconverted
    def adapt_many(self, support: Examples) -> list[tf.Tensor]:
        """Adapts to a batch of tasks and returns the parameters of each.

        Args:
            support: (x, y) or (x, y, weight) of the tasks, the task axis first.

        Returns:
            Tensors aligned with `model.trainable_variables`, the task axis first.

        Raises:
            AdaptationError: if the adaptation of a task fails.
        """
        batch = as_tensors(support)
        check_examples(batch, axis=1)
        adapted, diagnostics = self._programs.adapt(batch)
        failure.check(diagnostics, self.algorithm.final_time())
        held = self.function.initialization(number_of_tasks(batch)).held
        return self.function.unravel(adapted, held)

    def _check(
        self, diagnostics: MetaDiagnostics, losses: tf.Tensor | None = None
    ) -> list[tf.Operation]:
        if self.on_failure != "raise":
            return []
        return check(diagnostics, self.algorithm.final_time(), losses)
