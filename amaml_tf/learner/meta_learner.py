"""`MetaLearner`: meta-learning with the training interface of Keras."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import keras
import tensorflow as tf

from amaml_tf.algorithms.adjoint_maml import AdjointMAML
from amaml_tf.algorithms.base import Algorithm, MetaDiagnostics, MetaGradients
from amaml_tf.aliases import Outputs, Tensors
from amaml_tf.episodes import Episodes, Examples, check_episodes, number_of_tasks
from amaml_tf.errors import UsageError
from amaml_tf.flow import failure
from amaml_tf.functional import execution
from amaml_tf.functional.loss import Loss, LossWeights
from amaml_tf.functional.model import FunctionalModel
from amaml_tf.learner.adapted_model import adapted_model
from amaml_tf.learner.curves import Point, Predictions, points_along
from amaml_tf.learner.episode_metrics import EpisodeMetrics, Metrics, remade
from amaml_tf.learner.programs import Programs, check

ON_FAILURE = ("raise", "drop")


class MetaLearner(keras.Model):
    """Learns an initialization of `model` from batches of episodes.

    A batch of episodes is `((support_x, support_y), (query_x, query_y))`, every array with the
    task axis first. `fit` and `evaluate` take a `tf.data.Dataset` of such batches. They report the
    loss and the metrics of `compile` on the query sets, after adaptation to the support sets and
    (with the suffix `_before`) before it. `gradient_evaluations` is the number of gradients of the
    support loss in one inner run, the mean over the tasks.

    Args:
        model: a built Keras model; its trainable variables are the initialization.
        algorithm: default `AdjointMAML()`.
        batch_statistics: whether batch normalization uses the statistics of the current batch
            (transductive, as in the MAML papers; default) or the stored ones. See
            `FunctionalModel`.
        name: name of the Keras model.
    """

    def __init__(
        self,
        model: keras.Model,
        algorithm: Algorithm | None = None,
        *,
        batch_statistics: bool = True,
        name: str | None = None,
    ) -> None:
        super().__init__(name=name)
        self.model = model
        self.algorithm = algorithm or AdjointMAML()
        self.batch_statistics = batch_statistics
        self.algorithm_variables: list[keras.Variable] = []
        self._function: FunctionalModel | None = None
        self.on_failure = "raise"
        self.built = True

    def compile(
        self,
        optimizer: str | keras.optimizers.Optimizer = "adam",
        loss: Loss | None = None,
        metrics: Metrics | None = None,
        *,
        loss_weights: LossWeights | None = None,
        task_clip_norm: float | None = None,
        on_failure: str = "raise",
        vectorize: str = "auto",
        jit_compile: str | bool = "auto",
        run_eagerly: bool = False,
        **options: object,
    ) -> None:
        """Configures the learner as `keras.Model.compile` does.

        Args:
            optimizer: a Keras optimizer or its name, for the meta-parameters.
            loss: a Keras loss, its name, or a function of (y_true, y_pred). It is the loss of the
                support sets, which adaptation reduces, and of the query sets.
            metrics: Keras metrics or their names, in a list, or in a dict by output.
            loss_weights: a factor for the loss of each output.
            task_clip_norm: largest norm of one task's gradient of the initialization, > 0. A larger
                one is scaled down to it before the mean over tasks is taken; the task's gradient
                of the algorithm's own meta-parameters is scaled by the same factor. (The
                optimizer's `global_clipnorm` clips the mean.) None (default): no clipping.
            on_failure: what happens if the adaptation of a task fails (non-finite values, too many
                or too small steps): "raise" an error (default), or "drop" the task from losses,
                metrics and meta-gradients and count it.
            vectorize: "auto", "on" or "off": whether to evaluate the tasks of a batch as one
                vectorised program or separately, in parallel. See `amaml_tf.functional.execution`.
            jit_compile: "auto", "on" (True) or "off" (False): whether XLA compiles meta-gradients.
            run_eagerly: whether to run the meta-step eagerly, to debug it. Default False.
            **options: further arguments of `keras.Model.compile`.

        Raises:
            UsageError: if an argument does not fit the model.
        """
        if task_clip_norm is not None and not task_clip_norm > 0:
            raise UsageError(
                f"Expected task_clip_norm to be above 0, got {task_clip_norm}; pass a positive "
                "number, or None to clip nothing."
            )
        if on_failure not in ON_FAILURE:
            raise UsageError(f"Expected on_failure to be one of {ON_FAILURE}, got {on_failure!r}.")
        self.on_failure = on_failure
        if isinstance(jit_compile, bool):
            jit_compile = "on" if jit_compile else "off"
        self.execution = how = execution.choose(self.model, vectorize, jit_compile)
        self._function = FunctionalModel(
            self.model,
            loss,
            loss_weights=loss_weights,
            batch_statistics=self.batch_statistics,
            adapted=self.algorithm.adapted(self.model),
            vectorize=how.vectorize,
        )
        self.algorithm.build(self.function)
        self.algorithm_variables = list(self.algorithm.variables)
        self._episode_metrics = EpisodeMetrics(
            metrics,
            getattr(self.model, "output_names", None),
            counts_failures=on_failure == "drop",
        )
        self._programs = Programs(
            self._function, self.algorithm, task_clip_norm, how.jit_compile, run_eagerly
        )
        super().compile(optimizer=optimizer, jit_compile=False, run_eagerly=run_eagerly, **options)

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

    # -- the interface of Keras -------------------------------------------------------------------

    def call(self, x: Tensors, training: bool | None = None) -> Tensors:
        """Returns the predictions of the initialization itself, without adaptation."""
        return self.model(x, training=training)

    @property
    def trainable_variables(self) -> list[keras.Variable]:
        """What is learned: the initialization, then the algorithm's own meta-parameters."""
        return [*self.model.trainable_variables, *self.algorithm_variables]

    @property
    def trainable_weights(self) -> list[keras.Variable]:
        """The same, by Keras's other name."""
        return self.trainable_variables

    @property
    def metrics(self) -> list[keras.metrics.Metric]:
        """The metrics of `compile`, and those of the losses and gradient evaluations."""
        # Not `super().metrics`: it has Keras's own losses, which stay 0 and would be logged.
        return [] if self._function is None else self._episode_metrics.all

    def train_step(self, data: Episodes) -> dict[str, tf.Tensor]:
        """Makes one meta-update with a batch of episodes."""
        check_episodes(data)
        state = self.function.state()
        before = self._programs.query_before(data, state)
        result = self._programs.meta_gradients(data, state)
        with tf.control_dependencies(self._check(result.diagnostics)):
            gradients = [*result.gradients, *result.algorithm_gradients]
            gradients = [tf.identity(gradient) for gradient in gradients]
        # The optimizer divides what it applies by the scale of the loss, if it has one.
        gradients = [self.optimizer.scale_loss(gradient) for gradient in gradients]
        self.optimizer.apply(gradients, self.trainable_variables)
        self.function.advance_noise()
        return self._log(data, (result.losses, result.outputs), before, result.diagnostics)

    def test_step(self, data: Episodes) -> dict[str, tf.Tensor]:
        """Adapts to the support sets of a batch and evaluates on its query sets."""
        check_episodes(data)
        before, (losses, outputs), diagnostics = self._programs.predict(data)
        with tf.control_dependencies(self._check(diagnostics)):
            losses = tf.identity(losses)
        return self._log(data, (losses, outputs), before, diagnostics)

    def fit(self, *args: object, **options: object) -> keras.callbacks.History:
        """Trains on batches of episodes, as `keras.Model.fit` does.

        Raises:
            AdaptationError: if the adaptation of a task fails and `on_failure` is "raise".
        """
        options.setdefault("shuffle", False)  # episodes come in random order; Keras would warn
        with failure.readable():
            return super().fit(*args, **options)

    def evaluate(self, *args: object, **options: object) -> list[float] | dict[str, float]:
        """Evaluates on batches of episodes, as `keras.Model.evaluate`; raises as `fit` does."""
        with failure.readable():
            return super().evaluate(*args, **options)

    def get_config(self) -> dict[str, object]:
        """Raises UsageError: a learner is not saved as a whole."""
        raise UsageError(
            "Expected to save what a MetaLearner has learned, got the learner itself, which cannot "
            "be saved as a whole; use learner.model.save('x.keras') or save_initialization for the "
            "initialization, and save_weights (ModelCheckpoint with save_weights_only=True) to go "
            "on with training later."
        )

    # -- meta-learning --------------------------------------------------------------------------

    def meta_gradients(self, episodes: Episodes) -> MetaGradients:
        """Returns the loss, the meta-gradient and the diagnostics of a batch of episodes.

        `result.loss` is a scalar, `result.gradients` a list aligned with
        `model.trainable_variables`, `result.diagnostics` a `MetaDiagnostics`.

        Raises:
            AdaptationError: as in `fit`.
        """
        episodes = tf.nest.map_structure(tf.convert_to_tensor, episodes)
        check_episodes(episodes)
        result = self._programs.meta_gradients(episodes, self.function.state())
        self._check(result.diagnostics)
        return result

    def predict_episodes(self, episodes: Episodes) -> Predictions:
        """Returns query losses and outputs of a batch of episodes, before and after adaptation.

        Raises:
            AdaptationError: as in `fit`.
        """
        episodes = tf.nest.map_structure(tf.convert_to_tensor, episodes)
        check_episodes(episodes)
        predictions = self._programs.predict(episodes)
        self._check(predictions.diagnostics)
        return predictions

    def predict_along(self, episodes: Episodes, times: Sequence[float]) -> Iterator[Point]:
        """Yields a `Point` for each of the `times` of one adaptation of a batch of episodes.

        The flow is solved from each time to the next, each stretch with its own steps. All points
        together therefore cost little more than the last one. `times` replace the final time.

        Args:
            episodes: a batch of episodes.
            times: above 0, in increasing order.

        Raises:
            AdaptationError: as in `fit`.
        """
        episodes = tf.nest.map_structure(tf.convert_to_tensor, episodes)
        check_episodes(episodes)
        yield from points_along(
            self.function, self._programs.advance, episodes, times, self.on_failure
        )

    def adapt(self, support: Examples) -> keras.Model:
        """Adapts to one task and returns an ordinary, compiled Keras model for it.

        Args:
            support: (x, y) of one task, without a task axis.

        Returns:
            A copy of the model with the adapted parameters. Its stored batch normalization
            statistics are those of the support set.

        Raises:
            AdaptationError: if the adaptation fails.
        """
        function, state = self.function, self.function.state()
        support = tf.nest.map_structure(tf.convert_to_tensor, support)
        parameters, diagnostics = self._programs.adapt_one(support, state)
        failure.check(diagnostics, self.algorithm.final_time())
        model = adapted_model(function, parameters, state, support[0])
        model.compile(
            loss=function.loss.given,
            loss_weights=function.loss.given_weights,
            metrics=remade(self._episode_metrics.given),
        )
        return model

    def adapt_many(self, support: Examples) -> list[tf.Tensor]:
        """Adapts to a batch of tasks and returns the parameters of each.

        Args:
            support: (x, y) of the tasks, the task axis first.

        Returns:
            Tensors aligned with `model.trainable_variables`, the task axis first.

        Raises:
            AdaptationError: if the adaptation of a task fails.
        """
        batch = tf.nest.map_structure(tf.convert_to_tensor, support)
        adapted, diagnostics = self._programs.adapt(batch, self.function.state())
        failure.check(diagnostics, self.algorithm.final_time())
        held = self.function.initialization(number_of_tasks(batch)).held
        return self.function.unravel(adapted, held)

    # -- inside ---------------------------------------------------------------------------------

    def _check(self, diagnostics: MetaDiagnostics) -> list[tf.Operation]:
        if self.on_failure != "raise":
            return []
        return check(diagnostics, self.algorithm.final_time())

    def _log(
        self,
        data: Episodes,
        after: tuple[tf.Tensor, Outputs],
        before: tuple[tf.Tensor, Outputs],
        diagnostics: MetaDiagnostics,
    ) -> dict[str, tf.Tensor]:
        self._episode_metrics.update(data[1][1], after, before, diagnostics.forward)
        return self._episode_metrics.result()
