"""The losses and metrics that `fit` and `evaluate` of a `MetaLearner` report."""

from __future__ import annotations

from collections.abc import Sequence

import keras
import tensorflow as tf

from amaml_tf.algorithms.task_weights import arrived
from amaml_tf.aliases import Outputs
from amaml_tf.episodes import Examples
from amaml_tf.functional.model import FunctionalModel
from amaml_tf.learner.task_metrics import Metrics, TaskMetrics
from amaml_tf.solvers.diagnostics import Diagnostics


class LastBatch:
    """What became of the last batch.

    Attributes:
        counts: bool `[B]`, which tasks count; the others failed.
        stands: bool scalar, whether the last meta-update was applied.
    """

    def __init__(self) -> None:
        self.counts = tf.Variable(tf.zeros([0], tf.bool), trainable=False, shape=[None])
        self.stands = tf.Variable(True, trainable=False)


class MeanOverTasks(keras.metrics.Metric):
    """The mean of one value of each task; NaN if there was none.

    Args:
        shape: of the value of a task; a scalar for most.
        name: of the metric.
    """

    def __init__(self, shape: Sequence[int] = (), name: str | None = None) -> None:
        super().__init__(name=name)
        self._total = self.add_variable(tuple(shape), "zeros", name="total")
        self._count = self.add_variable((), "zeros", name="count")

    def update_state(self, values: tf.Tensor) -> None:
        """Adds the values of tasks, task axis first."""
        self._total.assign_add(tf.reduce_sum(tf.cast(values, self._total.dtype), axis=0))
        self._count.assign_add(tf.cast(tf.shape(values)[0], self._count.dtype))

    def result(self) -> tf.Tensor:
        return self._total / self._count


class EpisodeMetrics:
    """Query losses and metrics of the tasks that count, after adaptation and (`_before`) before.

    All are means over tasks, so every task has the same weight, whatever its size. A task that
    failed counts only in `dropped_tasks`.

    Args:
        metrics: as `keras.Model.compile` takes them; None: only the losses.
        weighted_metrics: the same.
        output_names: names of the model's outputs, if they have names.
        function: see `TaskMetrics`.
        counts_failures: whether failed tasks are dropped and counted.
    """

    def __init__(
        self,
        metrics: Metrics | None,
        weighted_metrics: Metrics | None,
        output_names: Sequence[str] | None,
        function: FunctionalModel | None = None,
        *,
        counts_failures: bool,
    ) -> None:
        self.given = metrics
        self.given_weighted = weighted_metrics
        self._counts_failures = counts_failures
        self._of_tasks = TaskMetrics(metrics, weighted_metrics, output_names, function)
        self._means: dict[str, MeanOverTasks] = {}
        for name in ("loss", "loss_before", "gradient_evaluations"):
            self._mean(name)
        self._dropped = keras.metrics.Sum(name="dropped_tasks")
        self._undone = keras.metrics.Sum(name="undone_steps")
        self.last_batch = LastBatch()

    def _mean(self, name: str, shape: Sequence[int] = ()) -> MeanOverTasks:
        if name not in self._means:
            self._means[name] = MeanOverTasks(shape, name)
        return self._means[name]

    @property
    def all(self) -> list[keras.metrics.Metric]:
        """All metrics, which Keras resets."""
        return [*self._means.values(), self._dropped, self._undone]

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
        (x, y, *weight), after, before, num_evaluations = tf.nest.map_structure(
            lambda values: tf.boolean_mask(values, counts),
            (tuple(query), after, before, diagnostics.num_evaluations),
        )
        self._dropped.update_state(tf.reduce_sum(tf.cast(~counts, tf.int32)))
        values = {"loss": after[0], "loss_before": before[0]}
        values |= {"gradient_evaluations": num_evaluations}
        for suffix, (_, outputs) in (("", after), ("_before", before)):
            found = self._of_tasks(y, outputs, *weight, x=x)
            values |= {f"{name}{suffix}": value for name, value in found.items()}
        for name, value in values.items():
            self._mean(name, value.shape[1:]).update_state(value)

    def count_update(self, stands: tf.Tensor) -> None:
        """Counts a meta-step; `stands` is False if it changed nothing."""
        self.last_batch.stands.assign(stands)
        self._undone.update_state(tf.cast(~stands, tf.int32))

    @property
    def reported(self) -> list[keras.metrics.Metric]:
        """The metrics whose values are reported, in their order."""
        return self.all if self._counts_failures else list(self._means.values())

    def result(self) -> dict[str, tf.Tensor]:
        """Returns the values by name."""
        return {metric.name: metric.result() for metric in self.reported}
