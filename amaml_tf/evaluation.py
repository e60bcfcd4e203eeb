"""The one evaluation protocol: unseen episodes, before and after adaptation, with intervals."""

from __future__ import annotations

import dataclasses
import json
import math
import os
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from amaml_tf.algorithms.base import arrived
from amaml_tf.files import write_atomically
from amaml_tf.meta_learner import MetaLearner

EVALUATION_FILE = "evaluation.json"

# Of the normal distribution: at 600 episodes Student's differs from it by 0.2%.
_QUANTILE_95 = 1.959963984540054


@dataclasses.dataclass(frozen=True)
class Estimate:
    """A mean over episodes, and half the width of its 95% confidence interval.

    The interval is mean ± 1.96 s / √n, where s is the standard deviation of the n values (with
    n - 1 degrees of freedom).
    """

    mean: float
    half_width: float

    @classmethod
    def of(cls, values: Any) -> Estimate:
        """The estimate from one value an episode, at least two of them."""
        values = np.asarray(values, np.float64)
        if values.size < 2:
            raise ValueError(
                f"Expected the values of 2 or more episodes for an interval, got {values.size}; "
                "evaluate on more episodes."
            )
        deviation = values.std(ddof=1)
        return cls(float(values.mean()), float(_QUANTILE_95 * deviation / math.sqrt(values.size)))

    def __str__(self) -> str:
        """Both numbers to the second significant digit of the half width."""
        if not (math.isfinite(self.half_width) and self.half_width > 0):
            return f"{self.mean:.4g} ± {self.half_width:.4g}"
        decimals = max(0, 1 - math.floor(math.log10(self.half_width)))
        return f"{self.mean:.{decimals}f} ± {self.half_width:.{decimals}f}"


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """What an initialization is worth on unseen episodes.

    Attributes:
        num_episodes: how many episodes the estimates are over.
        num_failed_episodes: further ones whose flow failed, left out (`on_failure="drop"`).
        before: query loss and metrics of the initialization itself, by name.
        after: the same after adaptation to the support sets.
        gradient_evaluations: of the inner run.
    """

    num_episodes: int
    num_failed_episodes: int
    before: dict[str, Estimate]
    after: dict[str, Estimate]
    gradient_evaluations: Estimate

    def table(self) -> str:
        """Returns a small table in plain text."""
        rows = [(f"{self.num_episodes} episodes", "before adaptation", "after adaptation")]
        rows += [(name, str(self.before[name]), str(self.after[name])) for name in self.after]
        rows.append(("gradient evaluations", "", str(self.gradient_evaluations)))
        if self.num_failed_episodes:
            rows.append(("failed, left out", "", str(self.num_failed_episodes)))
        lines = [f"{name:<22}{before:>22}{after:>22}" for name, before, after in rows]
        return "\n".join([*lines, "(mean over episodes ± half width of its 95% interval)"])

    def write(self, path: str | os.PathLike[str], **context: Any) -> None:
        """Writes the numbers, and `context` (what they are of), to a JSON file."""
        values = {**context, "confidence": 0.95, **dataclasses.asdict(self)}
        write_atomically(path, json.dumps(values, indent=2) + "\n")


def evaluate(
    learner: MetaLearner,
    episodes: Iterable[Any],
    num_episodes: int = 600,
    metrics: Sequence[keras.metrics.Metric] = (),
) -> Evaluation:
    """Adapts to the support sets of episodes and measures on their query sets.

    Every episode counts alike: a loss or a metric is computed for each alone, then averaged.

    Args:
        learner: compiled.
        episodes: batches of episodes, `num_episodes` in all or more; surplus ones don't count.
        num_episodes: at least 2.
        metrics: Keras metrics of the query sets, beside the loss.

    Returns:
        An `Evaluation`.

    Raises:
        ValueError: there are too few episodes.
        AdaptationError: a flow fails, and the learner is not to drop such tasks.
    """
    measure = _per_episode(metrics)
    batches: list[dict[str, Any]] = []
    count = 0
    for batch in episodes:
        values = tf.nest.map_structure(np.asarray, _values(learner, batch, measure))
        batches.append(values)
        count += values["arrived"].size
        if count >= num_episodes:
            break
    if count < num_episodes:
        raise ValueError(
            f"Expected {num_episodes} episodes to evaluate on, got {count}; give more, or ask for "
            "fewer."
        )
    whole = tf.nest.map_structure(lambda *parts: np.concatenate(parts)[:num_episodes], *batches)
    return _summary(whole)


def _values(
    learner: MetaLearner, batch: Any, measure: Callable[[Any, Any], dict[str, tf.Tensor]]
) -> dict[str, Any]:
    """What is measured of each episode of a batch: arrays `[B]`."""
    predictions = learner.predict_episodes(batch)
    forward = predictions.diagnostics.forward
    targets = batch[1][1]
    before, after = (
        {"loss": losses, **measure(targets, outputs)}
        for losses, outputs in (predictions.before, predictions.after)
    )
    return {
        "arrived": arrived(forward, after["loss"]),
        "gradient_evaluations": forward.num_evaluations,
        "before": before,
        "after": after,
    }


def _summary(values: dict[str, Any]) -> Evaluation:
    """The estimates from one value an episode, over the episodes that arrived."""
    fine = values.pop("arrived")
    estimates = tf.nest.map_structure(lambda each: Estimate.of(each[fine]), values)
    num_episodes = int(fine.sum())
    return Evaluation(num_episodes, int(fine.size) - num_episodes, **estimates)


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
