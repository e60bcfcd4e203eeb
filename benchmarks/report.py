"""Table, numbers and figures of a comparison."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import math
import pathlib
import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from amaml_tf import plots
from amaml_tf.evaluation import Estimate
from amaml_tf.files import write_atomically
from benchmarks.methods import Method
from benchmarks.paired import differences


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What was found of a method.

    Attributes:
        method: which.
        chosen: its settings, those that the search has chosen included; None if every candidate
            failed.
        candidates: settings and validation results of the search, in the order tried.
        results: of the final runs, by seed.
        refused: settings that the search had put first and whose final runs failed, and why.
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
        mean: over the seeds.
        seeds: from Student's t over the seeds' means; NaN for fewer than three.
        episodes: the mean of the seeds' own half widths over episodes. All seeds see the same
            episodes, so this bounds the half width of their mean from above.
    """

    mean: float
    seeds: float
    episodes: float

    @classmethod
    def of(cls, estimates: Sequence[Mapping[str, float]]) -> Spread:
        """The spread of one estimate a seed."""
        means = [each["mean"] for each in estimates]
        episodes = statistics.fmean(each["half_width"] for each in estimates)
        seeds = Estimate.of(means).half_width if len(means) >= 3 else math.nan
        return cls(statistics.fmean(means), seeds, episodes)

    @property
    def half_width(self) -> float:
        """The wider of the two: what a figure shows."""
        return self.episodes if math.isnan(self.seeds) else max(self.seeds, self.episodes)


def write_report(
    folder: pathlib.Path, outcomes: Sequence[Outcome], metric: str, provenance: Mapping[str, str]
) -> None:
    """Writes table.md, results.json, results.csv and the figures to `folder`."""
    text = "\n".join(
        [*_table(outcomes, metric), *_failures(outcomes), *_appendix(outcomes, metric)]
    )
    footer = "\n".join(f"- {name}: {_code(name, value)}" for name, value in provenance.items())
    write_atomically(folder / "table.md", f"{text}\n## How it was made\n\n{footer}\n")
    values = {
        "metric": metric,
        "provenance": dict(provenance),
        "methods": [_as_json(outcome, metric) for outcome in outcomes],
    }
    write_atomically(folder / "results.json", json.dumps(values, indent=1) + "\n")
    write_atomically(folder / "results.csv", _csv(outcomes))
    _draw(folder, outcomes, metric)


def summary(outcome: Outcome, metric: str) -> dict[str, Spread]:
    """Spreads of the metric after and before adaptation; empty if every run failed."""
    finished = outcome.finished
    if not finished:
        return {}
    return {
        when: Spread.of([each["evaluation"][when][metric] for each in finished])
        for when in ("before", "after")
    }


def sign(metric: str) -> int:
    """1 if small values are good, -1 if large ones are."""
    return -1 if metric == "accuracy" else 1


def best_stop(outcome: Outcome, metric: str) -> int | None:
    """At which point of the curve validation tasks say that adaptation should end."""
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
    """The time or steps of `best_stop`, and the test tasks' metric there."""
    best = best_stop(outcome, metric)
    if best is None:
        return None
    points = [each["evaluation"]["curve"][best] for each in outcome.finished]
    return points[0]["at"], Spread.of([point["measures"][metric] for point in points])


def _values_of_tasks(outcome: Outcome, metric: str, point: int | None) -> np.ndarray | None:
    """The metric of every test task at a point of the curve, the mean over the seeds."""
    evaluations = [each["evaluation"] for each in outcome.finished]
    # Episodes that failed are left out, and the values no longer stand at the places of others'.
    if point is None or not evaluations or any(e["num_failed_episodes"] for e in evaluations):
        return None
    return np.mean([each["curve"][point]["values"][metric] for each in evaluations], axis=0)


# -- the table ----------------------------------------------------------------------------------


def _table(outcomes: Sequence[Outcome], metric: str) -> Iterable[str]:
    intervals = "± seeds | ± tasks | to best"
    yield (
        f"| method | {metric} after adaptation | {intervals} | before | meta-steps "
        f"| {metric}, stopped | {intervals} | at | s | s first | gradients | seeds | chosen |"
    )
    yield "|---" * 17 + "|"
    ends = [_values_of_tasks(outcome, metric, -1) for outcome in outcomes]
    stops = [_values_of_tasks(o, metric, best_stop(o, metric)) for o in outcomes]
    to_best = [[_difference(d) for d in differences(v, sign(metric))] for v in (ends, stops)]
    for outcome, at_end, at_stop in zip(outcomes, *to_best, strict=True):
        yield _row(outcome, metric, at_end, at_stop)
    yield (
        f"\nMean {metric} of unseen test tasks over the seeds; the same episodes for every method "
        "and seed. ± seeds: half width of the 95% interval of Student's t over the seeds' means "
        "(from three seeds on). ± tasks: mean over the seeds of the half width of the 95% interval "
        "over tasks, which bounds that of the mean from above. to best: difference to the best "
        "method on the same tasks, pair by pair, of means over the seeds, with the half width of "
        "its 95% interval over tasks. stopped: the same if adaptation "
        "ends where it is best for validation tasks (at: steps or time). s: seconds of training, "
        "without the first meta-step (s first), which is compilation for the most part. gradients: "
        "of the support loss, in one inner run of training. seeds: runs that finished, of all."
    )


def _row(outcome: Outcome, metric: str, at_end: str, at_stop: str) -> str:
    finished, spreads = outcome.finished, summary(outcome, metric)
    cells = [outcome.method.label]
    if spreads:
        after, before = spreads["after"], spreads["before"]
        cells += [*_spread(after), at_end, _number(before.mean, 4)]
        cells.append(_number(_mean(each["meta_steps"] for each in finished), 3))
        at, there = stopped(outcome, metric) or (math.nan, Spread(math.nan, math.nan, math.nan))
        cells += [*_spread(there), at_stop, _number(at, 4)]
        names = ("seconds", "first_step_seconds", "training_gradient_evaluations")
        cells += [_number(_mean(each[name] for each in finished), 3) for name in names]
    else:
        cells += ["failed", *["" for _ in range(13)]]
    chosen = _settings(outcome, outcome.chosen or {})
    cells += [f"{len(finished)} of {len(outcome.results)}", chosen]
    return "| " + " | ".join(cells) + " |"


def _spread(spread: Spread) -> list[str]:
    numbers = [(spread.mean, 4), (spread.seeds, 2), (spread.episodes, 2)]
    return [_number(*each) for each in numbers]


def _difference(difference: Estimate | None) -> str:
    """Such as "+0.0021 ± 0.0034"; "best" for the best itself, nothing for what is not known."""
    if difference is None:
        return ""
    if difference.mean == difference.half_width == 0:
        return "best"
    return f"{difference.mean:+.2g} ± {_number(difference.half_width, 2)}"


def _settings(outcome: Outcome, settings: Mapping[str, Any]) -> str:
    """What the search was over, of `settings`."""
    return ", ".join(f"{n}={_plain(settings[n])}" for n in outcome.method.search if n in settings)


def _failures(outcomes: Sequence[Outcome]) -> Iterable[str]:
    failed = [
        f"- {outcome.method.label}, seed {seed}: {result['failed']}"
        for outcome in outcomes
        for seed, result in outcome.results.items()
        if "failed" in result
    ]
    dropped = [
        f"- {outcome.method.label}, seed {seed}: {count} test episodes failed and are left out."
        for outcome in outcomes
        for seed, result in outcome.results.items()
        if (count := result.get("evaluation", {}).get("num_failed_episodes"))
    ]
    refused = [
        f"- {outcome.method.label} with {_settings(outcome, settings)}, better in the search than "
        f"what was chosen, gave way: {reason}"
        for outcome in outcomes
        for settings, reason in outcome.refused
    ]
    if failed or dropped or refused:
        yield from ["\n## Failures\n", *failed, *dropped, *refused]


def _appendix(outcomes: Sequence[Outcome], metric: str) -> Iterable[str]:
    if any(outcome.candidates for outcome in outcomes):
        yield (
            "\n## Search\n\nEvery candidate was trained with one seed and measured on validation "
            f"tasks; the best {metric} was chosen.\n\n| method | candidate | {metric}, validation |"
            "\n|---|---|---|"
        )
    for outcome in outcomes:
        for settings, result in outcome.candidates:
            names, value = _settings(outcome, settings), _validation(result, metric)
            yield f"| {outcome.method.label} | {names} | {value} |"
    yield "\n## Settings\n"
    for outcome in outcomes:
        chosen = outcome.method.settings if outcome.chosen is None else outcome.chosen
        text = ", ".join(f"{n}={_plain(v)}" for n, v in chosen.items())
        yield f"- {outcome.method.label}: {text}"
    yield ""


def _validation(result: Mapping[str, Any], metric: str) -> str:
    if "failed" in result:
        return f"failed: {result['failed']}"
    estimate = result["evaluation"]["after"][metric]
    return f"{estimate['mean']:.4g} ± {estimate['half_width']:.2g}"


def _mean(values: Iterable[float | None]) -> float:
    known = [value for value in values if value is not None]
    return statistics.fmean(known) if known else math.nan


def _number(value: float, digits: int) -> str:
    if math.isnan(value):
        return ""
    return f"{value:.0f}" if abs(value) >= 10**digits else f"{value:.{digits}g}"


def _plain(value: Any) -> str:
    return "+".join(map(str, value)) if isinstance(value, list | tuple) else str(value)


def _code(name: str, value: str) -> str:
    return f"`{value}`" if name in ("command", "commit") else value


# -- numbers ------------------------------------------------------------------------------------


def _as_json(outcome: Outcome, metric: str) -> dict[str, Any]:
    spreads, at = summary(outcome, metric), stopped(outcome, metric)
    return {
        "label": outcome.method.label,
        "settings": outcome.chosen,
        "summary": {
            name: {n: _or_null(v) for n, v in dataclasses.asdict(spread).items()}
            for name, spread in spreads.items()
        },
        "stopped": None
        if at is None
        else {"at": at[0], **{n: _or_null(v) for n, v in dataclasses.asdict(at[1]).items()}},
        "candidates": [
            {"settings": settings, **_without_run(result)}
            for settings, result in outcome.candidates
        ],
        "runs": {str(seed): _without_run(result) for seed, result in outcome.results.items()},
    }


def _or_null(value: float) -> float | None:
    return None if math.isnan(value) else value  # JSON has no NaN


def _without_run(result: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in result.items() if name != "run"}


def _csv(outcomes: Sequence[Outcome]) -> str:
    """A row for every number: over adaptation (at: steps or time) and training (at: seconds)."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["method", "seed", "over", "at", "metric", "mean", "half_width"])
    for outcome in outcomes:
        for seed, result in outcome.results.items():
            for over in ("adaptation", "training"):
                for at, measures in _points(result, over):
                    for name, each in measures.items():
                        row = [outcome.method.label, seed, over, at, name]
                        writer.writerow([*row, each["mean"], each["half_width"]])
    return text.getvalue()


def _points(
    result: Mapping[str, Any], over: str
) -> list[tuple[float, dict[str, dict[str, float]]]]:
    """What a run measured on the way, over adaptation or over training."""
    if "failed" in result:
        return []
    if over == "training":
        return [(each["seconds"], each["after"]) for each in result["training_curve"]]
    return [(each["at"], each["measures"]) for each in result["evaluation"]["curve"]]


# -- figures ------------------------------------------------------------------------------------


def _draw(folder: pathlib.Path, outcomes: Sequence[Outcome], metric: str) -> None:
    units = {each["evaluation"]["unit"] for outcome in outcomes for each in outcome.finished}
    labels = {
        "adaptation": "steps of adaptation" if units == {"step"} else "time of adaptation",
        "training": "seconds of training",
    }
    for over, xlabel in labels.items():
        curves = {o.method.label: _mean_curve(o, over, metric) for o in outcomes}
        curves = {label: curve for label, curve in curves.items() if curve}
        if any(x > 0 for curve in curves.values() for x, _, _ in curve):
            path = folder / f"{over}.png"
            plots.plot_curves(
                curves, path, xlabel=xlabel, ylabel=f"{_small(metric)} of unseen tasks"
            )


def _mean_curve(outcome: Outcome, over: str, metric: str) -> list[tuple[float, float, float]]:
    """Means over the seeds, point by point, of the metric or, if it is to be large, of 1 - it."""
    each_seed = [points for result in outcome.finished if (points := _points(result, over))]
    curve = []
    for same in zip(*each_seed, strict=False):
        spread = Spread.of([measures[metric] for _, measures in same])
        mean = spread.mean if sign(metric) > 0 else 1 - spread.mean
        curve.append((statistics.fmean(at for at, _ in same), mean, spread.half_width))
    return curve


def _small(metric: str) -> str:
    """The name of what figures show: accuracies near 1 differ in what they lack, the error."""
    return metric if sign(metric) > 0 else "error"
