"""`evaluate` and `Evaluator`: losses and metrics on query sets, before and after adaptation."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from amaml_tf.algorithms.task_weights import arrived
from amaml_tf.episodes import Episodes, as_tensors
from amaml_tf.errors import UsageError
from amaml_tf.evaluation.results import CurvePoint, Evaluation
from amaml_tf.evaluation.statistics import Estimate, means_of_tasks
from amaml_tf.evaluation.ways import Way, way_of
from amaml_tf.learner.meta_learner import MetaLearner
from amaml_tf.learner.task_metrics import Metrics, TaskMetrics


def evaluate(
    learner: MetaLearner,
    episodes: Iterable[Episodes],
    num_episodes: int = 600,
    metrics: Metrics = (),
    times: Sequence[float] | None = None,
    optimizer: keras.optimizers.Optimizer | None = None,
    steps: Sequence[int] | None = None,
    task_indices: np.ndarray | None = None,
    all_layers: bool = False,
    *,
    weighted_metrics: Metrics = (),
    query_statistics: str = "support",
) -> Evaluation:
    """Adapts to the support sets of episodes and evaluates on their query sets.

    Every episode has the same weight: a loss or a metric is computed per episode, then averaged,
    as in `MetaLearner.evaluate`.

    Args:
        learner: a compiled learner.
        episodes: batches with at least `num_episodes` episodes in total; more are ignored.
        num_episodes: number of episodes to evaluate on, at least 2.
        metrics: of the query sets, in addition to the loss: what `keras.Model.compile` takes, if
            each metric has one value.
        times: times to measure at; the last one replaces the flow's final time. None: the
            algorithm's own inner run, measured at its end.
        optimizer: a Keras optimizer that trains from the initialization, in place of the flow; see
            `FineTuning`.
        steps: numbers of optimizer steps to measure at.
        task_indices: the task of each episode, integers of shape [num_episodes], if tasks repeat;
            the estimates are then over tasks. None: every episode is a different task.
        all_layers: whether the optimizer trains all layers, not only those that the algorithm
            adapts.
        weighted_metrics: the same as `metrics`, with the weights of the examples.
        query_statistics: whose statistics batch normalization uses in the predictions for a query
            set, before and after adaptation: "support", those of the support set (default), so
            that the prediction for a query does not depend on the other queries, or "batch", those
            of the query set (the transductive setting of the papers). A learner with
            `batch_statistics=False` uses the stored ones.

    Returns:
        An `Evaluation`. Its curve begins at 0, before adaptation.

    Raises:
        UsageError: there are too few episodes, times, optimizer and steps do not fit together, or
            a metric has several values.
        AdaptationError: the adaptation of a task fails, and the learner does not drop such tasks.
    """
    evaluator = Evaluator(
        learner,
        metrics,
        times,
        optimizer,
        steps,
        all_layers,
        weighted_metrics=weighted_metrics,
        query_statistics=query_statistics,
    )
    return evaluator(episodes, num_episodes, task_indices)


class Evaluator:
    """`evaluate` for repeated evaluations of one learner: its programs are compiled once.

    Every call evaluates the learner in its current state. Arguments and errors are those of
    `evaluate`.
    """

    def __init__(
        self,
        learner: MetaLearner,
        metrics: Metrics = (),
        times: Sequence[float] | None = None,
        optimizer: keras.optimizers.Optimizer | None = None,
        steps: Sequence[int] | None = None,
        all_layers: bool = False,
        *,
        weighted_metrics: Metrics = (),
        query_statistics: str = "support",
    ) -> None:
        self._make_way = way_of(learner, times, optimizer, steps, all_layers, query_statistics)
        self._query_statistics = _used_statistics(learner, query_statistics)
        names = getattr(learner.model, "output_names", None)
        of_tasks = TaskMetrics(metrics, weighted_metrics, names, learner.function)
        # Traced, because metrics called eagerly take as long as the adaptation itself.
        self._measure = tf.function(of_tasks, autograph=False)

    def __call__(
        self,
        episodes: Iterable[Episodes],
        num_episodes: int = 600,
        task_indices: np.ndarray | None = None,
    ) -> Evaluation:
        """Returns the `Evaluation` on these episodes."""
        if task_indices is not None and len(task_indices) < num_episodes:
            raise UsageError(
                f"Expected the task_indices of {num_episodes} episodes, got {len(task_indices)}; "
                "give one for each, or None."
            )
        way = self._make_way()
        batches: list[dict[str, Any]] = []
        count = 0
        for batch in episodes:
            values = tf.nest.map_structure(np.asarray, _values(way, batch, self._measure))
            batches.append(values)
            count += values["arrived"].size
            if count >= num_episodes:
                break
        if count < num_episodes:
            raise UsageError(
                f"Expected {num_episodes} episodes to evaluate on, got {count}; give more, or ask "
                "for fewer."
            )
        whole = tf.nest.map_structure(lambda *parts: np.concatenate(parts)[:num_episodes], *batches)
        found = _summary(whole, way, task_indices)
        return dataclasses.replace(found, query_statistics=self._query_statistics)


def _used_statistics(learner: MetaLearner, asked: str) -> str | None:
    """Returns whose statistics are used on query sets; None without batch normalization."""
    layers = learner.model._flatten_layers()  # noqa: SLF001 - Keras has no public recursive list
    if not any(isinstance(layer, keras.layers.BatchNormalization) for layer in layers):
        return None
    return asked if learner.batch_statistics else "stored"


def _values(
    way: Way, batch: Episodes, measure: Callable[..., dict[str, tf.Tensor]]
) -> dict[str, Any]:
    """Returns what is measured for each episode of a batch, as arrays `[B]`."""
    batch = as_tensors(batch)
    x, targets, *weight = batch[1]
    (losses, outputs), points = way.points(batch)
    scores = measure(targets, outputs, *weight, x=x)
    several = {name: value.shape[1:] for name, value in scores.items() if value.shape.rank > 1}
    if several:
        raise UsageError(
            f"Expected metrics with one value for each task, got {several}; choose an average "
            "over classes or thresholds."
        )
    curve = [{"loss": losses, **scores}]
    fine: bool | tf.Tensor = True
    evaluations: int | tf.Tensor = 0
    for losses, outputs, diagnostics in points:
        curve.append({"loss": losses, **measure(targets, outputs, *weight, x=x)})
        fine &= arrived(diagnostics, losses)
        evaluations += diagnostics.num_evaluations
    return {"arrived": fine, "gradient_evaluations": evaluations, "curve": curve}


def _summary(values: dict[str, Any], way: Way, task_indices: np.ndarray | None) -> Evaluation:
    """Returns the estimates from one value per episode, without the episodes that failed."""
    fine = values["arrived"]
    tasks = None if task_indices is None else np.asarray(task_indices)[: fine.size][fine]

    def counted(each: np.ndarray) -> np.ndarray:
        return each[fine] if tasks is None else means_of_tasks(each[fine], tasks)

    curve = []
    for at, point in zip((0.0, *way.ends), values["curve"], strict=True):
        each = {name: counted(found) for name, found in point.items()}
        measures = {name: Estimate.of(found) for name, found in each.items()}
        curve.append(CurvePoint(at, measures, {name: v.tolist() for name, v in each.items()}))
    num_episodes = int(fine.sum())
    return Evaluation(
        num_episodes=num_episodes,
        num_failed_episodes=int(fine.size) - num_episodes,
        num_tasks=None if tasks is None else np.unique(tasks).size,
        before=curve[0].measures,
        after=curve[-1].measures,
        gradient_evaluations=Estimate.of(counted(values["gradient_evaluations"])),
        unit=way.unit,
        curve=curve,
        gradient_evaluations_p99=_percentile_99(values["gradient_evaluations"][fine]),
    )


def _percentile_99(counts: np.ndarray) -> int | None:
    return int(np.ceil(np.percentile(counts, 99))) if counts.size else None
