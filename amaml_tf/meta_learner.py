"""`MetaLearner`: meta-learning with the training interface of Keras."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import keras
import tensorflow as tf

from amaml_tf import execution, failure
from amaml_tf.adaptation import Start
from amaml_tf.algorithms.adjoint_maml import AdjointMAML
from amaml_tf.algorithms.base import (
    Algorithm,
    Episodes,
    MetaDiagnostics,
    MetaGradients,
    arrived,
    number_of_tasks,
)
from amaml_tf.functional import FunctionalModel, is_noise
from amaml_tf.gradient_flow import Constants, vector_field
from amaml_tf.solvers.diagnostics import Diagnostics


class Predictions(NamedTuple):
    """Query losses `[B]` and outputs (task axis first) before and after adaptation.

    Attributes:
        before: (losses, outputs) of the initialization.
        after: (losses, outputs) of the adapted models.
        diagnostics: of the adaptation.
    """

    before: tuple[tf.Tensor, Any]
    after: tuple[tf.Tensor, Any]
    diagnostics: MetaDiagnostics


class Point(NamedTuple):
    """A batch of tasks part of the way through their adaptation.

    Attributes:
        losses: `[B]`, of the query sets.
        outputs: of the model on the query sets, task axis first.
        diagnostics: of the stretch from the point before to this one, per task.
    """

    losses: tf.Tensor
    outputs: Any
    diagnostics: Diagnostics


class MetaLearner(keras.Model):
    """Learns an initialization of `model` from batches of episodes.

    A batch of episodes is `((support_x, support_y), (query_x, query_y))`, every array with the
    task axis first. `fit` and `evaluate` take a `tf.data.Dataset` of such batches; the metrics
    given to `compile`, and the loss, are those of the query sets, after adaptation to the support
    sets and (with the suffix `_before`) before. `gradient_evaluations` is the number of gradients
    of the support loss that one inner run took, the mean over the tasks.

    Args:
        model: a built Keras model; its trainable variables are the initialization.
        algorithm: default `AdjointMAML()`.
        batch_statistics: whether batch normalization uses the statistics of the batch at hand
            (transductive, as in the MAML papers; default) or the stored ones. See
            `FunctionalModel`.
        name: of the Keras model.
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
        self.function: Any = None  # the FunctionalModel, once compiled
        self.built = True

    def compile(
        self,
        optimizer: Any = "adam",
        loss: Any = None,
        metrics: list[Any] | None = None,
        *,
        task_clip_norm: float | None = None,
        vectorize: str = "auto",
        jit_compile: str | bool = "auto",
        run_eagerly: bool = False,
        **options: Any,
    ) -> None:
        """Configures the learner as `keras.Model.compile` does.

        Args:
            optimizer: a Keras optimizer or its name, for the meta-parameters.
            loss: a Keras loss, its name, or a function of (y_true, y_pred): of the support sets,
                by which tasks are adapted, and of the query sets.
            metrics: list of Keras metrics or their names.
            task_clip_norm: largest norm of one task's gradient of the initialization, > 0: a
                larger one is scaled down to it, and what the task says of the algorithm's own
                meta-parameters with it, before the mean over tasks is taken (the optimizer's
                `global_clipnorm` is of that mean). None: any.
            vectorize: "auto", "on" or "off": evaluate the tasks of a batch as one vectorised
                program, or side by side. See `amaml_tf.execution`.
            jit_compile: "auto", "on" (True) or "off" (False): compile the meta-gradient with XLA.
            run_eagerly: run the meta-step eagerly, to debug it.
            **options: further arguments of `keras.Model.compile`.

        Raises:
            ValueError: if an argument does not fit the model.
        """
        if task_clip_norm is not None and not task_clip_norm > 0:
            raise ValueError(
                f"Expected task_clip_norm to be above 0, got {task_clip_norm}; pass a positive "
                "number, or None to clip nothing."
            )
        self._task_clip_norm = task_clip_norm
        if isinstance(jit_compile, bool):
            jit_compile = "on" if jit_compile else "off"
        self.execution = how = execution.choose(self.model, vectorize, jit_compile)
        self.function = FunctionalModel(
            self.model,
            loss,
            batch_statistics=self.batch_statistics,
            adapted=self.algorithm.adapted(self.model),
            vectorize=how.vectorize,
        )
        self.algorithm.build(self.function)
        self.algorithm_variables = list(self.algorithm.variables)
        self.loss_tracker = keras.metrics.Mean(name="loss")
        self.loss_before_tracker = keras.metrics.Mean(name="loss_before")
        self.evaluations_tracker = keras.metrics.Mean(name="gradient_evaluations")
        self.dropped_tracker = keras.metrics.Sum(name="dropped_tasks")
        self._metrics_before = _MetricsOnly(metrics)
        # What XLA compiles ends before the failure check, which XLA would remove.
        wrap = (
            (lambda f: f)
            if run_eagerly
            else tf.function(jit_compile=how.jit_compile, autograph=False)
        )
        self._graph_meta_gradients = wrap(self._meta_gradients)
        self._graph_adapt = wrap(self._adapt)
        self._graph_go_on = wrap(self._go_on)
        super().compile(
            optimizer=optimizer,
            metrics=metrics,
            jit_compile=False,
            run_eagerly=run_eagerly,
            **options,
        )

    # -- the interface of Keras -------------------------------------------------------------------

    def call(self, x: Any, training: bool | None = None) -> Any:
        """Returns the predictions of the initialization itself, without adaptation."""
        return self.model(x, training=training)

    @property
    def metrics(self) -> list[Any]:
        """Those of `compile`, and the trackers of losses and evaluations."""
        if self.function is None:
            return []
        own = [self.loss_tracker, self.loss_before_tracker, self.evaluations_tracker]
        own.append(self.dropped_tracker)
        # Not `super().metrics`: it has losses of Keras's own, which stay at 0 and would be logged.
        given = [self._compile_metrics, self._metrics_before._compile_metrics]  # noqa: SLF001
        return [*own, *(metrics for metrics in given if metrics is not None)]

    def train_step(self, data: Episodes) -> dict[str, tf.Tensor]:
        """One meta-update from a batch of episodes."""
        _check_episodes(data)
        state = self.function.state()
        before = self._query_before(data, state)
        result = self._graph_meta_gradients(data, state)
        with tf.control_dependencies(self._check(result.diagnostics)):
            gradients = [*result.gradients, *result.algorithm_gradients]
            gradients = [tf.identity(gradient) for gradient in gradients]
        variables = [*self.model.trainable_variables, *self.algorithm_variables]
        self.optimizer.apply(gradients, variables)
        self._advance_noise()
        return self._log(data, result.losses, result.outputs, before, result.diagnostics)

    def test_step(self, data: Episodes) -> dict[str, tf.Tensor]:
        """Adapts to the support sets of a batch and measures on its query sets."""
        _check_episodes(data)
        predictions = self._predict_episodes(data)
        (losses, outputs), diagnostics = predictions.after, predictions.diagnostics
        with tf.control_dependencies(self._check(diagnostics)):
            losses = tf.identity(losses)
        return self._log(data, losses, outputs, predictions.before, diagnostics)

    def fit(self, *args: Any, **options: Any) -> keras.callbacks.History:
        """As `keras.Model.fit`, on batches of episodes.

        Raises:
            AdaptationError: if the flow of a task fails and the flow's `on_failure` is "raise".
        """
        self._require_compiled()
        options.setdefault("shuffle", False)  # episodes come shuffled; Keras warns otherwise
        with failure.readable():
            return super().fit(*args, **options)

    def evaluate(self, *args: Any, **options: Any) -> Any:
        """As `keras.Model.evaluate`, on batches of episodes; raises as `fit` does."""
        self._require_compiled()
        with failure.readable():
            return super().evaluate(*args, **options)

    # -- meta-learning --------------------------------------------------------------------------

    def meta_gradients(self, episodes: Episodes) -> MetaGradients:
        """Returns loss and meta-gradient of a batch of episodes, and what they took.

        `result.loss` is a scalar, `result.gradients` a list aligned with
        `model.trainable_variables`, `result.diagnostics` a `MetaDiagnostics`.

        Raises:
            AdaptationError: as `fit`.
        """
        self._require_compiled()
        episodes = tf.nest.map_structure(tf.convert_to_tensor, episodes)
        _check_episodes(episodes)
        result = self._graph_meta_gradients(episodes, self.function.state())
        self._check(result.diagnostics)
        return result

    def predict_episodes(self, episodes: Episodes) -> Predictions:
        """Returns query losses and outputs of a batch of episodes, before and after adaptation.

        Raises:
            AdaptationError: as `fit`.
        """
        self._require_compiled()
        episodes = tf.nest.map_structure(tf.convert_to_tensor, episodes)
        _check_episodes(episodes)
        predictions = self._predict_episodes(episodes)
        self._check(predictions.diagnostics)
        return predictions

    def predict_along(self, episodes: Episodes, times: Sequence[float]) -> Iterator[Point]:
        """Yields a `Point` of a batch of episodes for every time of one run of adaptation.

        The flow is solved from time to time, each stretch in steps of its own, so all points
        together cost little more than the last one. `times` stand in place of the final time.

        Args:
            episodes: a batch, as elsewhere.
            times: above 0, in increasing order.

        Raises:
            AdaptationError: as `fit`.
        """
        self._require_compiled()
        episodes = tf.nest.map_structure(tf.convert_to_tensor, episodes)
        _check_episodes(episodes)
        support, query = episodes
        state, start = self.function.state(), self.start(episodes)
        adapted, before = start.adapted, 0.0
        longest = max(after - before for before, after in itertools.pairwise([0.0, *times]))
        for time in times:
            stretch = tf.constant(time - before, self.function.dtype)
            adapted, diagnostics = self._graph_go_on(support, state, adapted, stretch, longest)
            diagnostics = diagnostics._replace(time=diagnostics.time + before)
            if self.algorithm.flow.on_failure == "raise":
                failure.check(diagnostics, time)
            losses, outputs = self.function.query(adapted, start.held, state, *query)
            yield Point(losses, outputs, diagnostics)
            before = time

    def start(self, episodes: Any) -> Start:
        """Returns where the adaptation of a batch of episodes, or support sets, starts."""
        return self.algorithm.start(self.function, self._parameters(), number_of_tasks(episodes))

    def adapt(self, support: tuple[Any, Any]) -> keras.Model:
        """Adapts to one task and returns an ordinary, compiled Keras model for it.

        Args:
            support: (x, y) of one task, without a task axis.

        Returns:
            A copy of the model with the adapted parameters. Its stored batch normalization
            statistics are those of the support set.

        Raises:
            AdaptationError: if the flow does not arrive.
        """
        self._require_compiled()
        batch = tf.nest.map_structure(lambda v: tf.convert_to_tensor(v)[tf.newaxis], support)
        state = self.function.state()
        adapted, diagnostics = self._graph_adapt(batch, state)
        failure.check(diagnostics, self.algorithm.final_time())
        parameters = self.function.unravel(adapted, self.start(batch).held)
        return self._with_parameters([value[0] for value in parameters], state, support[0])

    # -- inside ---------------------------------------------------------------------------------

    def _parameters(self) -> list[tf.Tensor]:
        return [tf.convert_to_tensor(v) for v in self.model.trainable_variables]

    def _meta_gradients(self, episodes: Episodes, state: list[tf.Tensor]) -> MetaGradients:
        return self.algorithm.meta_gradients(self.function, state, episodes, self._task_clip_norm)

    def _adapt(self, support: Any, state: list[tf.Tensor]) -> tuple[tf.Tensor, Any]:
        return self.algorithm.adapt(
            self.function, state, support, self.start(support), differentiable=False
        )

    def _go_on(
        self,
        support: Any,
        state: list[tf.Tensor],
        adapted: tf.Tensor,
        stretch: tf.Tensor,
        longest: float,
    ) -> tuple[tf.Tensor, Diagnostics]:
        """Goes on with the flow from `adapted` for the time `stretch`, `longest` at most."""
        start = self.start(support)
        # The caps of a flow follow from its final time.
        flow = dataclasses.replace(self.algorithm.flow, final_time=longest, max_checkpoints=None)
        # The flow knows no time, but it pulls to the initialization.
        anchor = start.adapted if flow.proximal_weight else start.adapted[:, :0]
        constants = Constants(start.held, start.rates, anchor)
        system = vector_field(self.function, state, support, constants, flow.proximal_weight)
        solution = flow.solve(system, adapted, stretch, record=False)
        return solution.state, solution.diagnostics

    def _query_before(self, episodes: Episodes, state: list[tf.Tensor]) -> tuple[tf.Tensor, Any]:
        start = self.start(episodes)
        return self.function.query(start.adapted, start.held, state, *episodes[1])

    def _predict_episodes(self, episodes: Episodes) -> Predictions:
        state, start = self.function.state(), self.start(episodes)
        adapted, diagnostics = self._graph_adapt(episodes[0], state)
        after = self.function.query(adapted, start.held, state, *episodes[1])
        dropped = tf.reduce_sum(tf.cast(~arrived(diagnostics, after[0]), tf.int32))
        before = self._query_before(episodes, state)
        return Predictions(before, after, MetaDiagnostics(diagnostics, None, dropped))

    def _check(self, diagnostics: MetaDiagnostics) -> list[tf.Operation]:
        if self.algorithm.flow.on_failure != "raise":
            return []
        forward, backward = diagnostics.forward, diagnostics.backward
        if backward is not None:  # the forward's own failure comes first
            forward = forward._replace(
                status=tf.where(forward.status < 0, forward.status, backward.status)
            )
        return failure.check(forward, self.algorithm.final_time())

    def _log(
        self, data: Episodes, losses: Any, outputs: Any, before: Any, diagnostics: MetaDiagnostics
    ) -> dict[str, tf.Tensor]:
        fine = tf.cast(arrived(diagnostics.forward, losses), losses.dtype)
        self.loss_tracker.update_state(tf.where(fine > 0, losses, 0), sample_weight=fine)
        self.loss_before_tracker.update_state(before[0])
        self.evaluations_tracker.update_state(diagnostics.forward.num_evaluations)
        self.dropped_tracker.update_state(diagnostics.num_dropped_tasks)
        _, query_y = data[1]
        targets = _without_task_axis(query_y)
        if self._compile_metrics is not None:
            self._compile_metrics.update_state(targets, _without_task_axis(outputs))
            self._metrics_before.update(targets, _without_task_axis(before[1]))
        logs = {metric.name: metric.result() for metric in self.metrics[:4]}
        if self._compile_metrics is not None:
            logs |= self._compile_metrics.result()
            logs |= self._metrics_before.result()
        if self.algorithm.flow.on_failure == "raise":
            del logs["dropped_tasks"]
        return logs

    def _advance_noise(self) -> None:
        """The next meta-step draws new dropout masks."""
        for variable in self.model.non_trainable_variables:
            if is_noise(variable):
                variable.assign(variable + tf.ones_like(variable))

    def _with_parameters(
        self, parameters: list[tf.Tensor], state: list[tf.Tensor], x: Any
    ) -> keras.Model:
        model = self.model
        values = dict(zip(map(id, model.trainable_variables), parameters, strict=True))
        others = self.function.statistics_of(parameters, state, x)
        values |= dict(zip(map(id, model.non_trainable_variables), others, strict=True))
        copy = _copy_of(model)
        for target, source in zip(copy.variables, model.variables, strict=True):
            target.assign(values[id(source)])
        copy.compile(loss=self.function.loss, metrics=_fresh(self._metrics_before.given))
        return copy

    def _require_compiled(self) -> None:
        if self.function is None:
            raise ValueError(
                "Expected a compiled MetaLearner. Call compile(optimizer=..., loss=...) first."
            )


class _MetricsOnly(keras.Model):
    """A second set of the metrics given to `compile`, for the predictions before adaptation."""

    def __init__(self, metrics: list[Any] | None) -> None:
        super().__init__()
        self.given = _fresh(metrics)
        self.built = True
        self.compile(metrics=_fresh(metrics))

    def update(self, targets: Any, outputs: Any) -> None:
        self._compile_metrics.update_state(targets, outputs)

    def result(self) -> dict[str, Any]:
        return {f"{name}_before": v for name, v in self._compile_metrics.result().items()}


def _fresh(metrics: list[Any] | None) -> list[Any] | None:
    if metrics is None:
        return None
    return [
        m.__class__.from_config(m.get_config()) if isinstance(m, keras.metrics.Metric) else m
        for m in metrics
    ]


def _copy_of(model: keras.Model) -> keras.Model:
    try:
        copy = keras.models.clone_model(model)
    except (ValueError, TypeError, NotImplementedError) as error:
        raise ValueError(
            f"Expected a model that can be copied from its configuration, but {model.name!r} "
            f"cannot: {error} Build it from keras.Input, or give it get_config and from_config."
        ) from error
    if not copy.built:
        copy.build(model.input_shape)
    return copy


def _without_task_axis(values: Any) -> Any:
    return tf.nest.map_structure(
        lambda v: tf.reshape(v, tf.concat([[-1], tf.shape(v)[2:]], axis=0)), values
    )


def _check_episodes(data: Any) -> None:
    try:
        (_, _), (_, _) = data
    except (TypeError, ValueError) as error:
        raise ValueError(
            "Expected batches of episodes ((support_x, support_y), (query_x, query_y)), every "
            f"array with the task axis first; got {tf.nest.map_structure(type, data)}."
        ) from error
    sizes = {array.shape[0] for array in tf.nest.flatten(data)}
    if len(sizes) != 1:
        raise ValueError(
            "Expected all arrays of a batch of episodes to have the same number of tasks on "
            f"their first axis, got {sorted(map(str, sizes))}."
        )
