"""The losses and metrics that `fit` and `evaluate` of a `MetaLearner` report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TypeAlias

import keras
import tensorflow as tf

# `Model.compile(metrics=...)` makes this from names, objects, lists and dicts. Keras has no public
# name for it.
from keras.src.trainers.compile_utils import CompileMetrics

from amaml_tf.aliases import Tensors
from amaml_tf.episodes import without_task_axis

#: What `compile(metrics=...)` takes.
Metrics: TypeAlias = Sequence[object] | Mapping[str, object]


class EpisodeMetrics:
    """Query losses and metrics of the tasks that count, after adaptation and (`_before`) before.

    A task that failed counts only in `dropped_tasks`.

    Args:
        metrics: as `keras.Model.compile` takes them; None: only the losses.
        counts_failures: whether failed tasks are dropped and counted.
    """

    def __init__(self, metrics: Metrics | None, counts_failures: bool) -> None:
        self.given = fresh(metrics)
        self._counts_failures = counts_failures
        self._loss = keras.metrics.Mean(name="loss")
        self._loss_before = keras.metrics.Mean(name="loss_before")
        self._evaluations = keras.metrics.Mean(name="gradient_evaluations")
        self._dropped = keras.metrics.Sum(name="dropped_tasks")
        self._after = CompileMetrics(metrics, None) if metrics else None
        self._before = CompileMetrics(fresh(metrics), None) if metrics else None

    @property
    def all(self) -> list[keras.metrics.Metric]:
        """All metrics, which Keras resets."""
        own = [self._loss, self._loss_before, self._evaluations, self._dropped]
        return [*own, *(m for m in (self._after, self._before) if m is not None)]

    def update(
        self,
        targets: Tensors,
        after: tuple[tf.Tensor, Tensors],
        before: tuple[tf.Tensor, Tensors],
        counts: tf.Tensor,
        num_evaluations: tf.Tensor,
    ) -> None:
        """Adds a batch of episodes.

        Args:
            targets: of the query sets, task axis first.
            after: query losses `[B]` and outputs, task axis first, after adaptation.
            before: the same before adaptation.
            counts: bool `[B]`, which tasks count.
            num_evaluations: int32 `[B]`, gradients of the support loss that each task used.
        """
        targets, after, before, num_evaluations = tf.nest.map_structure(
            lambda values: tf.boolean_mask(values, counts),
            (targets, after, before, num_evaluations),
        )
        self._loss.update_state(after[0])
        self._loss_before.update_state(before[0])
        self._evaluations.update_state(num_evaluations)
        self._dropped.update_state(tf.reduce_sum(tf.cast(~counts, tf.int32)))
        if self._after is not None and self._before is not None:
            examples = without_task_axis(targets)
            self._after.update_state(examples, without_task_axis(after[1]))
            self._before.update_state(examples, without_task_axis(before[1]))

    def result(self) -> dict[str, tf.Tensor]:
        """Returns the values by name."""
        own = [self._loss, self._loss_before, self._evaluations]
        if self._counts_failures:
            own.append(self._dropped)
        logs = {metric.name: metric.result() for metric in own}
        if self._after is not None and self._before is not None:
            logs |= self._after.result()
            logs |= {f"{name}_before": value for name, value in self._before.result().items()}
        return logs


def fresh(metrics: Metrics | None) -> Metrics | None:
    """Returns new metrics with the settings of `metrics` and their own states."""
    return tf.nest.map_structure(
        lambda m: (
            m.__class__.from_config(m.get_config()) if isinstance(m, keras.metrics.Metric) else m
        ),
        metrics,
    )
