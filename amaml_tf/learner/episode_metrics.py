"""The losses and metrics that `fit` and `evaluate` of a `MetaLearner` report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TypeAlias

import keras
import tensorflow as tf

# `Model.compile(metrics=...)` makes this from names, objects, lists and dicts. Keras has no public
# name for it.
from keras.src.trainers.compile_utils import CompileMetrics

from amaml_tf.algorithms.task_weights import arrived
from amaml_tf.aliases import Outputs, Tensors
from amaml_tf.episodes import Examples, without_task_axis
from amaml_tf.functional import example_weights
from amaml_tf.learner.lossy_configs import lacking_in_config
from amaml_tf.solvers.diagnostics import Diagnostics

#: What `compile(metrics=...)` takes.
Metrics: TypeAlias = Sequence[object] | Mapping[str, object]


class LastBatch:
    """What became of the last batch.

    Attributes:
        counts: bool `[B]`, which tasks count; the others failed.
        stands: bool scalar, whether the last meta-update was applied.
    """

    def __init__(self) -> None:
        self.counts = tf.Variable(tf.zeros([0], tf.bool), trainable=False, shape=[None])
        self.stands = tf.Variable(True, trainable=False)


class EpisodeMetrics:
    """Query losses and metrics of the tasks that count, after adaptation and (`_before`) before.

    A task that failed counts only in `dropped_tasks`. An example of weight 0 counts nowhere. The
    other weights are those of the losses and of the weighted metrics, as in Keras.

    Args:
        metrics: as `keras.Model.compile` takes them; None: only the losses.
        weighted_metrics: the same.
        output_names: names of the model's outputs, if they have names.
        counts_failures: whether failed tasks are dropped and counted.
    """

    def __init__(
        self,
        metrics: Metrics | None,
        weighted_metrics: Metrics | None = None,
        output_names: Sequence[str] | None = None,
        *,
        counts_failures: bool,
    ) -> None:
        self.given = metrics
        self.given_weighted = weighted_metrics
        self._counts_failures = counts_failures
        self._loss = keras.metrics.Mean(name="loss")
        self._loss_before = keras.metrics.Mean(name="loss_before")
        self._evaluations = keras.metrics.Mean(name="gradient_evaluations")
        self._dropped = keras.metrics.Sum(name="dropped_tasks")
        self._undone = keras.metrics.Sum(name="undone_steps")
        self.last_batch = LastBatch()
        given = metrics, weighted_metrics
        self._after, self._before = (
            CompileMetrics(*each, output_names=output_names) if any(given) else None
            for each in (given, tuple(map(remade, given)))
        )

    @property
    def all(self) -> list[keras.metrics.Metric]:
        """All metrics, which Keras resets."""
        own = [self._loss, self._loss_before, self._evaluations, self._dropped, self._undone]
        return [*own, *(m for m in (self._after, self._before) if m is not None)]

    def update(
        self,
        query: Examples,
        after: tuple[tf.Tensor, Outputs],
        before: tuple[tf.Tensor, Outputs],
        diagnostics: Diagnostics,
    ) -> None:
        """Adds a batch of episodes.

        Args:
            query: the query sets, task axis first.
            after: query losses `[B]` and outputs, task axis first, after adaptation.
            before: the same before adaptation.
            diagnostics: of the adaptation, per task.
        """
        counts = arrived(diagnostics, after[0])
        self.last_batch.counts.assign(counts)
        scored, after, before, num_evaluations = tf.nest.map_structure(
            lambda values: tf.boolean_mask(values, counts),
            (tuple(query[1:]), after, before, diagnostics.num_evaluations),
        )
        self._loss.update_state(after[0])
        self._loss_before.update_state(before[0])
        self._evaluations.update_state(num_evaluations)
        self._dropped.update_state(tf.reduce_sum(tf.cast(~counts, tf.int32)))
        if self._after is not None and self._before is not None:
            for metrics, (_, outputs) in ((self._after, after), (self._before, before)):
                scores = without_task_axis((scored[0], outputs, *scored[1:]))
                metrics.update_state(*without_padding(*scores))

    def count_update(self, stands: tf.Tensor) -> None:
        """Counts a meta-step; `stands` is False if it changed nothing."""
        self.last_batch.stands.assign(stands)
        self._undone.update_state(tf.cast(~stands, tf.int32))

    def result(self) -> dict[str, tf.Tensor]:
        """Returns the values by name."""
        own = [self._loss, self._loss_before, self._evaluations]
        if self._counts_failures:
            own += [self._dropped, self._undone]
        logs = {metric.name: metric.result() for metric in own}
        if self._after is not None and self._before is not None:
            logs |= self._after.result()
            logs |= {f"{name}_before": value for name, value in self._before.result().items()}
        counted = {self._dropped.name, self._undone.name}
        # Keras's mean of nothing is 0, which would look like a perfect score.
        return {
            name: value if name in counted else _if_any(self._loss.count, value)
            for name, value in logs.items()
        }


def _if_any(count: tf.Tensor, value: tf.Tensor) -> tf.Tensor:
    value = tf.convert_to_tensor(value)
    return tf.where(count > 0, value, tf.cast(float("nan"), value.dtype))


def without_padding(y: Tensors, outputs: Tensors, *weight: Tensors) -> tuple[Tensors, ...]:
    """Returns targets, outputs and weights, if any, of the examples with a weight that is not 0."""
    if not weight:
        return y, outputs
    chosen = example_weights.counts(weight)
    return tf.nest.map_structure(lambda v: tf.boolean_mask(v, chosen), (y, outputs, *weight))


class _Twin(keras.metrics.Metric):
    """A metric with the settings of another one, whatever these are, and a state of its own."""

    def __init__(self, metric: keras.metrics.Metric) -> None:
        super().__init__(name=metric.name, dtype=metric.dtype)
        metric.reset_state()
        self._metric = metric
        self._state = [
            self.add_variable(v.shape, keras.initializers.Constant(v.numpy()), v.dtype)
            for v in metric.variables
        ]
        self._first = [v.numpy() for v in metric.variables]

    def update_state(
        self, y_true: Tensors, y_pred: Tensors, sample_weight: Tensors | None = None
    ) -> None:
        state = [v.value for v in self._state]
        new = self._metric.stateless_update_state(state, y_true, y_pred, sample_weight)
        for variable, value in zip(self._state, new, strict=True):
            variable.assign(value)

    def count_update(self, stands: tf.Tensor) -> None:
        """Counts a meta-step; `stands` is False if it changed nothing."""
        self.last_batch.stands.assign(stands)
        self._undone.update_state(tf.cast(~stands, tf.int32))

    def result(self) -> tf.Tensor:
        return self._metric.stateless_result([v.value for v in self._state])

    def reset_state(self) -> None:
        for variable, value in zip(self._state, self._first, strict=True):
            variable.assign(value)


def remade(metrics: Metrics | None) -> Metrics | None:
    """Returns new metrics with the settings of `metrics`."""
    return tf.nest.map_structure(
        lambda m: _remade(m) if isinstance(m, keras.metrics.Metric) else m, metrics
    )


def _remade(metric: keras.metrics.Metric) -> keras.metrics.Metric:
    try:
        made = type(metric).from_config(metric.get_config())
    except (TypeError, ValueError, NotImplementedError):
        return _Twin(metric)
    if isinstance(metric, keras.metrics.MeanMetricWrapper):
        # The configurations of some metrics lack arguments: that of CosineSimilarity its axis.
        made._fn_kwargs = dict(metric._fn_kwargs)  # noqa: SLF001 - Keras has no public name
    elif lacking_in_config(metric):
        return _Twin(metric)
    return made
