"""The results of a method over its seeds."""

from __future__ import annotations

import dataclasses
import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from amaml_tf.comparison.methods import Method
from amaml_tf.evaluation import Estimate


@dataclasses.dataclass(frozen=True)
class Outcome:
    """The results of a method.

    Attributes:
        method: the method.
        chosen: its settings, with those that the search chose; None if every candidate failed.
        candidates: settings and validation results of the search, in the order tried.
        results: results of the final runs, by seed.
        refused: settings that the search ranked first but whose final runs failed, and the reason.
    """

    method: Method
    chosen: dict[str, Any] | None
    candidates: list[tuple[dict[str, Any], dict[str, Any]]]
    results: dict[int, dict[str, Any]]
    refused: list[tuple[dict[str, Any], str]] = dataclasses.field(default_factory=list)

    @property
    def finished(self) -> list[dict[str, Any]]:
        """The results of the runs that did not fail."""
        return [result for result in self.results.values() if "failed" not in result]


@dataclasses.dataclass(frozen=True)
class Spread:
    """A mean over seeds, with two half widths of 95% intervals.

    Attributes:
        mean: the mean over the seeds.
        seeds: half width from Student's t over the seeds' means; NaN for fewer than three seeds.
        episodes: mean of the seeds' own half widths over episodes. All seeds see the same episodes,
            so this is an upper bound on the half width of their mean.
    """

    mean: float
    seeds: float
    episodes: float

    @classmethod
    def of(cls, estimates: Sequence[Mapping[str, float]]) -> Spread:
        """Returns the spread of estimates, one per seed."""
        means = [each["mean"] for each in estimates]
        episodes = statistics.fmean(each["half_width"] for each in estimates)
        seeds = Estimate.of(means).half_width if len(means) >= 3 else math.nan
        return cls(statistics.fmean(means), seeds, episodes)

    @property
    def half_width(self) -> float:
        """The larger of the two half widths, which figures show."""
        return self.episodes if math.isnan(self.seeds) else max(self.seeds, self.episodes)


def summary(outcome: Outcome, metric: str) -> dict[str, Spread]:
    """Returns the metric's spreads before and after adaptation; empty if every run failed."""
    finished = outcome.finished
    if not finished:
        return {}
    return {
        when: Spread.of([each["evaluation"][when][metric] for each in finished])
        for when in ("before", "after")
    }


def sign(metric: str) -> int:
    """Returns 1 if small values of the metric are good, -1 if large ones are."""
    return -1 if metric == "accuracy" else 1


def best_stop(outcome: Outcome, metric: str) -> int | None:
    """Returns the index of the curve point where validation tasks are best; None if unknown."""
    finished = [each for each in outcome.finished if each["validation"] is not None]
    if not finished:
        return None
    curves = [
        [point["measures"][metric]["mean"] for point in each["validation"]["curve"]]
        for each in finished
    ]
    means = [sign(metric) * statistics.fmean(values) for values in zip(*curves, strict=True)]
    return means.index(min(means))


def stopped(outcome: Outcome, metric: str) -> tuple[float, Spread] | None:
    """Returns the time or steps of `best_stop`, and the test tasks' metric there."""
    best = best_stop(outcome, metric)
    if best is None:
        return None
    points = [each["evaluation"]["curve"][best] for each in outcome.finished]
    return points[0]["at"], Spread.of([point["measures"][metric] for point in points])


def values_of_tasks(outcome: Outcome, metric: str, point: int | None) -> np.ndarray | None:
    """Returns the metric of every test task at a point of the curve, the mean over the seeds."""
    evaluations = [each["evaluation"] for each in outcome.finished]
    # Failed episodes are left out, so positions no longer match those in other methods' values.
    if point is None or not evaluations or any(e["num_failed_episodes"] for e in evaluations):
        return None
    return np.mean([each["curve"][point]["values"][metric] for each in evaluations], axis=0)


def points_of(
    result: Mapping[str, Any], over: str
) -> list[tuple[float, dict[str, dict[str, float]]]]:
    """Returns the measurements of a run over adaptation or over training."""
    if "failed" in result:
        return []
    if over == "training":
        return [(each["seconds"], each["after"]) for each in result["training_curve"]]
    return [(each["at"], each["measures"]) for each in result["evaluation"]["curve"]]
