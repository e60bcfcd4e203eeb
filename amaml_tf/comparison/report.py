"""Writing the results of a comparison: table, numbers and figures."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import math
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from amaml_tf.comparison import figures
from amaml_tf.comparison.outcome import Outcome, points_of, stopped, summary
from amaml_tf.comparison.table import table_of
from amaml_tf.files import write_atomically


def write_report(
    folder: pathlib.Path, outcomes: Sequence[Outcome], metric: str, provenance: Mapping[str, str]
) -> None:
    """Writes table.md, results.json, results.csv and the figures to `folder`."""
    write_atomically(folder / "table.md", table_of(outcomes, metric, provenance))
    values = {
        "metric": metric,
        "provenance": dict(provenance),
        "methods": [_as_json(outcome, metric) for outcome in outcomes],
    }
    write_atomically(folder / "results.json", json.dumps(values, indent=1) + "\n")
    write_atomically(folder / "results.csv", _csv(outcomes))
    figures.draw(folder, outcomes, metric)


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
    """Returns a row per number, over adaptation (at: steps or time) and training (at: seconds)."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["method", "seed", "over", "at", "metric", "mean", "half_width"])
    for outcome in outcomes:
        for seed, result in outcome.results.items():
            for over in ("adaptation", "training"):
                for at, measures in points_of(result, over):
                    for name, each in measures.items():
                        row = [outcome.method.label, seed, over, at, name]
                        writer.writerow([*row, each["mean"], each["half_width"]])
    return text.getvalue()
