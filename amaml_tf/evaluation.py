"""The one evaluation protocol: unseen episodes, before and after adaptation, with intervals."""

from __future__ import annotations

import csv
import dataclasses
import functools
import io
import json
import math
import os
import pathlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf
import tensorflow_probability as tfp

from amaml_tf.algorithms.base import arrived
from amaml_tf.files import write_atomically
from amaml_tf.fine_tuning import FineTuning
from amaml_tf.meta_learner import MetaLearner, Point

EVALUATION_FILE = "evaluation.json"


@dataclasses.dataclass(frozen=True)
class Estimate:
    """A mean over n values, and half the width of its 95% confidence interval.

    The interval is mean ± t s / √n, where s is the standard deviation of the n values (with n - 1
    degrees of freedom) and t the 97.5% quantile of Student's distribution: 1.96 for many values.
    """

    mean: float
    half_width: float

    @classmethod
    def of(cls, values: Any) -> Estimate:
        """The estimate from one value an episode (or a task), at least two of them."""
        values = np.asarray(values, np.float64)
        if values.size < 2:
            raise ValueError(
                f"Expected the values of 2 or more episodes for an interval, got {values.size}; "
                "evaluate on more episodes, and on 2 or more tasks."
            )
        error = values.std(ddof=1) / math.sqrt(values.size)
        return cls(float(values.mean()), float(_quantile(values.size - 1) * error))

    def __str__(self) -> str:
        """Both numbers to the second significant digit of the half width."""
        if not (math.isfinite(self.half_width) and self.half_width > 0):
            return f"{self.mean:.4g} ± {self.half_width:.4g}"
        decimals = max(0, 1 - math.floor(math.log10(self.half_width)))
        return f"{self.mean:.{decimals}f} ± {self.half_width:.{decimals}f}"


@functools.cache
def _quantile(degrees_of_freedom: int) -> float:
    """The 97.5% quantile of Student's distribution."""
    one = np.float64(1)
    student = tfp.distributions.StudentT(degrees_of_freedom * one, 0 * one, one)
    return float(student.quantile(0.975 * one))


@dataclasses.dataclass(frozen=True)
class CurvePoint:
    """Query loss and metrics by name, `at` a time or a number of steps of adaptation.

    Attributes:
        at: when.
        measures: means, with their intervals.
        values: what they are the means of, one value an episode, or one a task where tasks come
            back: to compare learners on the same tasks, pair by pair.
    """

    at: float
    measures: dict[str, Estimate]
    values: dict[str, list[float]]


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """What an initialization is worth on unseen episodes.

    Attributes:
        num_episodes: how many episodes were measured.
        num_failed_episodes: further ones that failed, left out (`on_failure="drop"`).
        num_tasks: of how many tasks the episodes are, where tasks come back. Then the estimates
            are over tasks, of the mean of each task's episodes; None: over episodes.
        before: query loss and metrics of the initialization itself, by name.
        after: the same after adaptation to the support sets.
        gradient_evaluations: of the inner run.
        unit: what the curve goes along: "time" (of the flow) or "step" (of an optimizer).
        curve: the same measurements on the way, from 0 (`before`) to the end (`after`), all on
            the same episodes.
    """

    num_episodes: int
    num_failed_episodes: int
    num_tasks: int | None
    before: dict[str, Estimate]
    after: dict[str, Estimate]
    gradient_evaluations: Estimate
    unit: str
    curve: list[CurvePoint]

    def table(self) -> str:
        """Returns a small table in plain text: the ends, and the curve if it has more points."""
        counted = f"{self.num_episodes} episodes"
        if self.num_tasks is not None:
            counted += f", {self.num_tasks} tasks"
        lines = [f"{counted:<26}{'before adaptation':>22}{'after adaptation':>22}"]
        lines += [
            f"{name:<26}{self.before[name]!s:>22}{self.after[name]!s:>22}" for name in self.after
        ]
        lines.append(f"{'gradient evaluations':<26}{'':>22}{self.gradient_evaluations!s:>22}")
        if self.num_failed_episodes:
            lines.append(f"{'failed, left out':<26}{'':>22}{self.num_failed_episodes!s:>22}")
        if len(self.curve) > 2:
            lines.append(self._rows_of_curve())
        over = "episodes" if self.num_tasks is None else "tasks, of each one's mean over episodes"
        return "\n".join([*lines, f"(mean over {over} ± half width of its 95% interval)"])

    def _rows_of_curve(self) -> str:
        names = list(self.after)
        heads = [f"{'after ' + self.unit:<26}", *(f"{name:>22}" for name in names)]
        rows = ["".join(heads)]
        for point in self.curve:
            estimates = (f"{point.measures[name]!s:>22}" for name in names)
            rows.append(f"{point.at:<26g}" + "".join(estimates))
        return "\n".join(rows)

    def write(self, path: str | os.PathLike[str], **context: Any) -> None:
        """Writes the estimates, and `context` (what they are of), to a JSON file.

        The curve goes to a CSV file of that name beside it as well: columns `time` or `step`,
        `metric`, `mean` and `half_width`, a row for every point and metric.
        """
        values = {**context, "confidence": 0.95, **dataclasses.asdict(self)}
        values["curve"] = [
            {self.unit: point["at"], **point["measures"]} for point in values["curve"]
        ]
        write_atomically(path, json.dumps(values, indent=2) + "\n")
        write_atomically(pathlib.Path(path).with_suffix(".csv"), self._csv())

    def _csv(self) -> str:
        text = io.StringIO()
        rows = csv.writer(text, lineterminator="\n")
        rows.writerow([self.unit, "metric", "mean", "half_width"])
        for point in self.curve:
            for name, estimate in point.measures.items():
                rows.writerow([f"{point.at:g}", name, estimate.mean, estimate.half_width])
        return text.getvalue()


def evaluate(
    learner: MetaLearner,
    episodes: Iterable[Any],
    num_episodes: int = 600,
    metrics: Sequence[keras.metrics.Metric] = (),
    times: Sequence[float] | None = None,
    optimizer: keras.optimizers.Optimizer | None = None,
    steps: Sequence[int] | None = None,
    task_indices: np.ndarray | None = None,
    all_layers: bool = False,
) -> Evaluation:
    """Adapts to the support sets of episodes and measures on their query sets.

    Every episode counts alike: a loss or a metric is computed for each alone, then averaged.

    Args:
        learner: compiled.
        episodes: batches of episodes, `num_episodes` in all or more; surplus ones don't count.
        num_episodes: at least 2.
        metrics: Keras metrics of the query sets, beside the loss.
        times: times to measure at, the last in place of the flow's final time. None: the
            algorithm's own inner run, measured at its end.
        optimizer: train by this Keras optimizer from the initialization in place of the flow; see
            `FineTuning`.
        steps: numbers of the optimizer's steps to measure at.
        task_indices: which task each episode is of, ints of shape [num_episodes], where tasks come
            back: the estimates are then over tasks. None: every episode is another task.
        all_layers: the optimizer trains all layers, not only those that the algorithm adapts.

    Returns:
        An `Evaluation`. Its curve begins at 0, before adaptation.

    Raises:
        ValueError: there are too few episodes, or times, optimizer and steps do not fit.
        AdaptationError: the adaptation of a task fails, and the learner is not to drop such tasks.
    """
    evaluator = Evaluator(learner, metrics, times, optimizer, steps, all_layers)
    return evaluator(episodes, num_episodes, task_indices)


class Evaluator:
    """`evaluate` for a learner that is measured again and again: its programs are compiled once.

    Every call measures the learner as it is then. Arguments and errors are those of `evaluate`.
    """

    def __init__(
        self,
        learner: MetaLearner,
        metrics: Sequence[keras.metrics.Metric] = (),
        times: Sequence[float] | None = None,
        optimizer: keras.optimizers.Optimizer | None = None,
        steps: Sequence[int] | None = None,
        all_layers: bool = False,
    ) -> None:
        self._make_run = _run_of(learner, times, optimizer, steps, all_layers)
        self._measure = _per_episode(metrics)

    def __call__(
        self,
        episodes: Iterable[Any],
        num_episodes: int = 600,
        task_indices: np.ndarray | None = None,
    ) -> Evaluation:
        """Returns the `Evaluation` on these episodes."""
        if task_indices is not None and len(task_indices) < num_episodes:
            raise ValueError(
                f"Expected the task_indices of {num_episodes} episodes, got {len(task_indices)}; "
                "give one for each, or None."
            )
        run = self._make_run()
        batches: list[dict[str, Any]] = []
        count = 0
        for batch in episodes:
            values = tf.nest.map_structure(np.asarray, _values(run, batch, self._measure))
            batches.append(values)
            count += values["arrived"].size
            if count >= num_episodes:
                break
        if count < num_episodes:
            raise ValueError(
                f"Expected {num_episodes} episodes to evaluate on, got {count}; give more, or ask "
                "for fewer."
            )
        whole = tf.nest.map_structure(lambda *parts: np.concatenate(parts)[:num_episodes], *batches)
        return _summary(whole, run, task_indices)


@dataclasses.dataclass(frozen=True)
class _Run:
    """A way to adapt.

    Attributes:
        unit: of the curve.
        ends: where it is measured, 0 apart.
        points: of a batch of episodes gives the query losses and outputs before adaptation, and a
            `Point` for every end, one by one so that not all outputs are kept.
    """

    unit: str
    ends: tuple[float, ...]
    points: Callable[[Any], tuple[tuple[Any, Any], Iterable[Point]]]


def _run_of(
    learner: MetaLearner,
    times: Sequence[float] | None,
    optimizer: keras.optimizers.Optimizer | None,
    steps: Sequence[int] | None,
    all_layers: bool,
) -> Callable[[], _Run]:
    """Returns what gives the way to adapt as of now: a learned final time changes."""
    if (optimizer is None) != (steps is None) or (times is not None and steps is not None):
        given = {"times": times, "optimizer": optimizer, "steps": steps}
        names = " and ".join(name for name, value in given.items() if value is not None)
        raise ValueError(
            "Expected times, or an optimizer and its steps, or none of these, got "
            f"{names}; leave out or add what makes it one of them. Steps of gradient descent are "
            "times, multiples of its step size, or steps of keras.optimizers.SGD."
        )

    def before(batch: Any) -> tuple[Any, Any]:
        start = learner.start(batch)
        function = learner.function
        return function.query(start.adapted, start.held, function.state(), *batch[1])

    if optimizer is not None and steps is not None:
        numbers = tuple(map(int, _in_order("steps", steps)))
        fine_tuning = FineTuning(learner, optimizer, all_layers)
        run = _Run("step", numbers, lambda b: (before(b), fine_tuning.points(b, numbers)))
        return lambda: run
    if times is not None:
        ends = tuple(map(float, _in_order("times", times)))
        run = _Run("time", ends, lambda b: (before(b), learner.predict_along(b, ends)))
        return lambda: run

    def own(batch: Any) -> tuple[Any, Iterator[Point]]:
        predictions = learner.predict_episodes(batch)
        diagnostics = predictions.diagnostics.forward
        return predictions.before, iter([Point(*predictions.after, diagnostics)])

    return lambda: _Run("time", (float(learner.algorithm.final_time()),), own)


def _in_order(name: str, numbers: Sequence[float]) -> list[float]:
    """Returns the numbers above 0, each once, in increasing order; 0 is measured anyway."""
    ends = sorted(set(numbers) - {0})
    if not ends or not ends[0] > 0 or not math.isfinite(ends[-1]):
        raise ValueError(
            f"Expected {name} of 0 or more, one of them above 0, got {tuple(numbers)}; pass such "
            "as 10, 100, 1000."
        )
    return ends


def _values(
    run: _Run, batch: Any, measure: Callable[[Any, Any], dict[str, tf.Tensor]]
) -> dict[str, Any]:
    """What is measured of each episode of a batch: arrays `[B]`."""
    batch = tf.nest.map_structure(tf.convert_to_tensor, batch)
    targets = batch[1][1]
    (losses, outputs), points = run.points(batch)
    curve = [{"loss": losses, **measure(targets, outputs)}]
    fine: Any = True
    evaluations: Any = 0
    for losses, outputs, diagnostics in points:
        curve.append({"loss": losses, **measure(targets, outputs)})
        fine &= arrived(diagnostics, losses)
        evaluations += diagnostics.num_evaluations
    return {"arrived": fine, "gradient_evaluations": evaluations, "curve": curve}


def _summary(values: dict[str, Any], run: _Run, task_indices: np.ndarray | None) -> Evaluation:
    """The estimates from one value an episode, over the episodes that arrived."""
    fine = values["arrived"]
    tasks = None if task_indices is None else np.asarray(task_indices)[: fine.size][fine]

    def counted(each: np.ndarray) -> np.ndarray:
        return each[fine] if tasks is None else _means_of_tasks(each[fine], tasks)

    curve = []
    for at, point in zip((0.0, *run.ends), values["curve"], strict=True):
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
        unit=run.unit,
        curve=curve,
    )


def _means_of_tasks(values: np.ndarray, tasks: np.ndarray) -> np.ndarray:
    """The mean of the values of each task, because visits to one task are not independent."""
    _, numbers = np.unique(tasks, return_inverse=True)
    return np.bincount(numbers, values) / np.bincount(numbers)


def _per_episode(
    metrics: Sequence[keras.metrics.Metric],
) -> Callable[[Any, Any], dict[str, tf.Tensor]]:
    """Returns a function of the targets and outputs of a batch of episodes: metrics, `[B]` each."""
    for metric in metrics:
        metric.reset_state()
    fresh = [[tf.constant(v.numpy()) for v in metric.variables] for metric in metrics]

    def one(episode: tuple[Any, Any]) -> list[tf.Tensor]:
        values = []
        for metric, variables in zip(metrics, fresh, strict=True):
            variables = metric.stateless_update_state(variables, *episode)
            values.append(tf.cast(metric.stateless_result(variables), tf.float32))
        return values

    # Traced, because metrics called eagerly take as long as the adaptation itself.
    @tf.function
    def measure(targets: Any, outputs: Any) -> dict[str, tf.Tensor]:
        signature = [tf.TensorSpec([], tf.float32)] * len(metrics)
        values = tf.map_fn(one, (targets, outputs), fn_output_signature=signature)
        return {metric.name: value for metric, value in zip(metrics, values, strict=True)}

    return measure if metrics else lambda targets, outputs: {}
