"""The figures of a comparison: over adaptation, and over training."""

from __future__ import annotations

import pathlib
import statistics
from collections.abc import Sequence

from amaml_tf import plots
from amaml_tf.comparison.outcome import Outcome, Spread, points_of, sign


def draw(folder: pathlib.Path, outcomes: Sequence[Outcome], metric: str) -> None:
    """Draws `adaptation.png` and `training.png` in `folder`."""
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
    """Returns the mean over the seeds at every point, of the metric or of 1 - accuracy."""
    each_seed = [points for result in outcome.finished if (points := points_of(result, over))]
    curve = []
    for same in zip(*each_seed, strict=False):
        spread = Spread.of([measures[metric] for _, measures in same])
        mean = spread.mean if sign(metric) > 0 else 1 - spread.mean
        curve.append((statistics.fmean(at for at, _ in same), mean, spread.half_width))
    return curve


def _small(metric: str) -> str:
    """Returns the name of what is drawn: the metric, or the error in place of accuracy.

    Accuracies near 1 are told apart by their errors.
    """
    return metric if sign(metric) > 0 else "error"
