"""The table of a comparison, in Markdown."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from amaml_tf.comparison.outcome import (
    Outcome,
    Spread,
    best_stop,
    sign,
    stopped,
    summary,
    values_of_tasks,
)
from amaml_tf.comparison.paired import differences
from amaml_tf.evaluation import Estimate
from amaml_tf.experiment import Experiment
from amaml_tf.experiment.declaration import settings_of


def table_of(outcomes: Sequence[Outcome], metric: str, provenance: Mapping[str, str]) -> str:
    """Returns the table, the failures, the search, the settings, and the provenance."""
    lines = [*_table(outcomes, metric), *_failures(outcomes), *_appendix(outcomes, metric)]
    footer = "\n".join(f"- {name}: {_code(name, value)}" for name, value in provenance.items())
    return "\n".join(lines) + f"\n## How it was made\n\n{footer}\n"


def _table(outcomes: Sequence[Outcome], metric: str) -> Iterable[str]:
    intervals = "± seeds | ± tasks | to best"
    yield (
        f"| method | {metric} after adaptation | {intervals} | before | meta-steps "
        f"| {metric}, stopped | {intervals} | at | s | s first | gradients | seeds | chosen |"
    )
    yield "|---" * 17 + "|"
    ends = [values_of_tasks(outcome, metric, -1) for outcome in outcomes]
    stops = [values_of_tasks(o, metric, best_stop(o, metric)) for o in outcomes]
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
    """Returns text such as "+0.0021 ± 0.0034", "best" for the best itself, "" if unknown."""
    if difference is None:
        return ""
    if difference.mean == difference.half_width == 0:
        return "best"
    return f"{difference.mean:+.2g} ± {_number(difference.half_width, 2)}"


def _settings(outcome: Outcome, settings: Mapping[str, Any]) -> str:
    """Returns those of `settings` that the search varied, as text."""
    return ", ".join(
        f"{n}={_plain(n, settings[n])}" for n in outcome.method.search if n in settings
    )


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
        text = ", ".join(f"{n}={_plain(n, v)}" for n, v in chosen.items())
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


def _plain(name: str, value: object) -> str:
    declared = settings_of(Experiment).get(name)
    if declared is not None and declared.is_range and isinstance(value, list | tuple):
        return declared.text(tuple(value))
    return "+".join(map(str, value)) if isinstance(value, list | tuple) else str(value)


def _code(name: str, value: str) -> str:
    return f"`{value}`" if name in ("command", "commit") else value
