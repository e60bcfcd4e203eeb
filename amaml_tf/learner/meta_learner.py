"""`MetaLearner`: meta-learning with the training interface of Keras."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import keras
import tensorflow as tf

# Numbers where there is one value, arrays where a metric has several. Keras does not export it.
from keras.src.utils.python_utils import pythonify_logs

from amaml_tf.algorithms.adjoint_maml import AdjointMAML
from amaml_tf.algorithms.base import Algorithm, MetaDiagnostics
from amaml_tf.aliases import Outputs, Tensors
from amaml_tf.distribution import Replicas, refuse_strategies
from amaml_tf.episodes import Episodes, episodes_of
from amaml_tf.errors import UsageError
from amaml_tf.flow import failure
from amaml_tf.functional import execution
from amaml_tf.functional.checks import refuse_own_losses
from amaml_tf.functional.loss import Loss, LossWeights
from amaml_tf.functional.model import FunctionalModel
from amaml_tf.learner.episode_functions import EpisodeFunctions, unconverted
from amaml_tf.learner.episode_metrics import EpisodeMetrics, LastBatch
from amaml_tf.learner.meta_update import apply_if_finite
from amaml_tf.learner.parts import Split
from amaml_tf.learner.programs import Programs
from amaml_tf.learner.saving import SavedLearner, remembered
from amaml_tf.learner.task_metrics import Metrics

_ON_BATCH = ("sample_weight", "class_weight")
ON_FAILURE = ("raise", "drop")


@keras.saving.register_keras_serializable(package="amaml_tf")
class MetaLearner(EpisodeFunctions, SavedLearner):
    """Learns an initialization of `model` from batches of episodes.

    A batch of episodes is `((support_x, support_y), (query_x, query_y))`, every array with the
    task axis first. With weights of the examples (Keras's `sample_weight`) it is `((support_x,
    support_y, support_weight), (query_x, query_y, query_weight))`, or one of the two sets has them.
    An example of weight 0 counts nowhere, whatever stands in its place: it pads tasks of different
    sizes to one. A task fails if all examples of one of its sets have weight 0.

    `fit` and `evaluate` take a `tf.data.Dataset` of such batches. They report the loss and the
    metrics of `compile` on the query sets, after adaptation to the support sets and (with the
    suffix `_before`) before it. `gradient_evaluations` is the number of gradients of the support
    loss in one inner run, the mean over the tasks.

    Args:
        model: a built Keras model; its trainable variables are the initialization.
        algorithm: default `AdjointMAML()`.
        batch_statistics: whether batch normalization uses the statistics of the current batch
            (transductive, as in the MAML papers; default) or the stored ones. See
            `FunctionalModel`.
        name: name of the Keras model.

    Raises:
        UsageError: if the model computes its losses or metrics in its own way.
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
        refuse_own_losses(model, self)
        self.model = model
        self.algorithm = algorithm or AdjointMAML()
        self.batch_statistics = batch_statistics
        self.algorithm_variables: list[keras.Variable] = []
        self._function: FunctionalModel | None = None
        self.on_failure = "raise"
        self.replicas: Replicas | None = None
        self.built = True

    @remembered
    def compile(
        self,
        optimizer: str | keras.optimizers.Optimizer = "adam",
        loss: Loss | None = None,
        metrics: Metrics | None = None,
        *,
        weighted_metrics: Metrics | None = None,
        loss_weights: LossWeights | None = None,
        task_clip_norm: float | None = None,
        tasks_per_step: int | None = None,
        examples_per_step: int | None = None,
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
            weighted_metrics: the same, with the weights of the examples.
            loss_weights: a factor for the loss of each output.
            task_clip_norm: largest norm of one task's gradient of the initialization, > 0. A larger
                one is scaled down to it before the mean over tasks is taken; the task's gradient
                of the algorithm's own meta-parameters is scaled by the same factor. (The
                optimizer's `global_clipnorm` clips the mean.) None (default): no clipping.
            tasks_per_step: the largest number of tasks that are solved at a time. A larger batch is
                solved in pieces, one after another, in the memory of one piece: meta-gradients and
                metrics are the same to rounding. None (default): all tasks at once.
            examples_per_step: the largest number of support examples of a task that are evaluated
                at a time. Derivatives of the loss of a larger support set are added up over its
                pieces. Losses must be sums or means over examples, which do not depend on each
                other. None (default): all examples at once.
            on_failure: what happens if the adaptation of a task fails (non-finite values, too many
                or too small steps): "raise" an error (default), or "drop" the task from losses,
                metrics and meta-gradients and count it.
            vectorize: "auto", "on" or "off": whether to evaluate the tasks of a batch as one
                vectorised program or separately, in parallel. See `amaml_tf.functional.execution`.
            jit_compile: "auto", "on" (True) or "off" (False): whether XLA compiles meta-gradients.
                With "auto", the first batch decides: what cannot be vectorised or compiled by XLA
                is executed in the next way, and the log says which and why.
            run_eagerly: whether to run the meta-step eagerly, to debug it. Default False.
            **options: further arguments of `keras.Model.compile`.

        Raises:
            UsageError: if an argument does not fit the model.
        """
        if on_failure not in ON_FAILURE:
            raise UsageError(f"Expected on_failure to be one of {ON_FAILURE}, got {on_failure!r}.")
        self.on_failure = on_failure
        refuse_strategies(self.model)
        ways = execution.ways(self.model, vectorize, jit_compile)
        self._function = FunctionalModel(
            self.model,
            loss,
            loss_weights=loss_weights,
            batch_statistics=self.batch_statistics,
            adapted=self.algorithm.adapted(self.model),
            vectorize=ways[0].vectorize,
            examples_per_step=examples_per_step,
        )
        self.algorithm.build(self.function)
        self.algorithm_variables = list(self.algorithm.variables)
        self._episode_metrics = EpisodeMetrics(
            metrics,
            weighted_metrics,
            getattr(self.model, "output_names", None),
            self._function,
            counts_failures=on_failure == "drop",
        )
        self._programs = Programs(
            self._function,
            self.algorithm,
            task_clip_norm,
            ways,
            Split(tasks_per_step, self.replicas),
            restricted=(vectorize, jit_compile) != ("auto", "auto"),
            run_eagerly=run_eagerly,
        )
        super().compile(optimizer=optimizer, jit_compile=False, run_eagerly=run_eagerly, **options)

    def distribute(self, replicas: Replicas | None) -> None:
        """Divides the tasks of every batch among `replicas` from now on; None: this device alone.

        Losses, metrics, meta-gradients and evaluations are those of one device, to rounding.
        """
        self.replicas = replicas
        if self._function is not None:
            self._programs.split = self._programs.split.among(replicas)

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

    @property
    def metrics_names(self) -> list[str]:
        """The names of the values that `evaluate` returns as a list, in their order."""
        if self._function is None:
            return []
        return [metric.name for metric in self._episode_metrics.reported]

    def get_metrics_result(self) -> dict[str, Any]:
        """Returns what `fit` and `evaluate` report of the batches since they have begun."""
        result = {} if self._function is None else self._episode_metrics.result()
        return pythonify_logs(result)

    @property
    def last_batch(self) -> LastBatch:
        """What became of the last batch of `fit` or `evaluate`."""
        return self._episode_metrics.last_batch

    @unconverted
    def train_step(self, data: Sequence[Any]) -> dict[str, tf.Tensor]:
        """Makes one meta-update with a batch of episodes."""
        refuse_strategies(self.model)
        data = episodes_of(data)
        result, before = self._programs.meta_step(data)
        raises = self.on_failure == "raise"
        with tf.control_dependencies(self._check(result.diagnostics, result.losses)):
            gradients = [*result.gradients, *result.algorithm_gradients]
            gradients = [tf.identity(gradient) for gradient in gradients]
        stands, reason = apply_if_finite(
            self.optimizer,
            gradients,
            self.trainable_variables,
            result.diagnostics.num_dropped_tasks < tf.size(result.losses),
            counts_undone=not raises,
        )
        with tf.control_dependencies(failure.check_update(stands, reason) if raises else []):
            self._episode_metrics.count_update(stands)
        self._programs.gradients.note()
        self.function.advance_noise()
        return self._log(data, (result.losses, result.outputs), before, result.diagnostics)

    def make_train_function(self, force: bool = False) -> Callable[..., Any]:
        """Compiles the meta-update, as `keras.Model.fit` has it done."""
        # Variables that the first trace creates would make TensorFlow trace everything twice.
        if not self.optimizer.built:
            self.optimizer.build(self.trainable_variables)
        return super().make_train_function(force)

    @unconverted
    def test_step(self, data: Sequence[Any]) -> dict[str, tf.Tensor]:
        """Adapts to the support sets of a batch and evaluates on its query sets."""
        refuse_strategies(self.model)
        data = episodes_of(data)
        before, (losses, outputs), diagnostics = self._programs.predict(data)
        with tf.control_dependencies(self._check(diagnostics, losses)):
            losses = tf.identity(losses)
        return self._log(data, (losses, outputs), before, diagnostics)

    def fit(self, *args: object, **options: object) -> keras.callbacks.History:
        """Trains on batches of episodes, as `keras.Model.fit` does.

        Raises:
            UsageError: weights of examples or of classes are given beside the episodes.
            AdaptationError: if the adaptation of a task fails and `on_failure` is "raise".
        """
        _refuse_weights_beside_episodes(options)
        options.setdefault("shuffle", False)  # episodes come in random order; Keras would warn
        with failure.readable():
            return super().fit(*args, **options)

    def evaluate(self, *args: object, **options: object) -> list[float] | dict[str, float]:
        """Evaluates on batches of episodes, as `keras.Model.evaluate`; raises as `fit` does."""
        _refuse_weights_beside_episodes(options)
        with failure.readable():
            return super().evaluate(*args, **options)

    def train_on_batch(
        self, x: object, y: object = None, *args: object, **options: object
    ) -> list[float] | dict[str, float]:
        """Makes one meta-update, as `keras.Model.train_on_batch` does.

        Args:
            x: a batch of episodes; or its support sets, with its query sets as `y`.
            y: query sets.
            *args: further arguments of Keras, none of which may be weights.
            **options: the same.

        Raises:
            UsageError: as `fit`.
            AdaptationError: as `fit`.
        """
        _refuse_weights_beside_episodes(dict(zip(_ON_BATCH, args, strict=False)) | options)
        with failure.readable():
            return super().train_on_batch(x, y, *args, **options)

    def _log(
        self,
        data: Episodes,
        after: tuple[tf.Tensor, Outputs],
        before: tuple[tf.Tensor, Outputs],
        diagnostics: MetaDiagnostics,
    ) -> dict[str, tf.Tensor]:
        self._episode_metrics.update(data[1], after, before, diagnostics.forward)
        return self._episode_metrics.result()


def _refuse_weights_beside_episodes(options: Mapping[str, object]) -> None:
    given = [n for n in ("class_weight", "sample_weight") if options.get(n) is not None]
    if given:
        raise UsageError(
            f"Expected weights inside of the episodes, got {' and '.join(given)}; give each set of "
            "examples its weights as a third array, (x, y, weight)."
        )
