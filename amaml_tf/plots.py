"""Figures, drawn without a display; matplotlib is imported only to draw."""

from __future__ import annotations

import io
import pathlib
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from amaml_tf.aliases import PathLike
from amaml_tf.errors import UsageError
from amaml_tf.files import write_atomically

if TYPE_CHECKING:  # imported only to draw
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

TRUTH, SUPPORT = "0.75", "#d95f02"
# Adaptation goes from light to dark.
BEFORE, DURING, AFTER = "#9ecae1", "#4292c6", "#08306b"


class AdaptationCurves(NamedTuple):
    """The curves of one task with scalar inputs and outputs, as arrays of any shape.

    Attributes:
        support_x: inputs of the support set.
        support_y: their targets.
        x: inputs of the curves, in increasing order.
        truth: true values at `x`.
        before: predictions at `x` before adaptation.
        during: predictions at `x` during adaptation.
        after: predictions at `x` after adaptation.
    """

    support_x: np.ndarray
    support_y: np.ndarray
    x: np.ndarray
    truth: np.ndarray
    before: np.ndarray
    during: np.ndarray
    after: np.ndarray


def draw_adaptation(
    rows: Mapping[str, Sequence[AdaptationCurves]],
    path: PathLike,
    during: str = "during adaptation",
) -> None:
    """Draws predictions before, during and after adaptation, one column per task.

    Args:
        rows: the tasks by initialization, such as "random initialization"; every row has the same
            tasks.
        path: file to write; its suffix (png, svg, pdf) decides the format.
        during: label of the curve between before and after.

    Raises:
        UsageError: if there is nothing to draw.
    """
    if not rows or not all(rows.values()):
        raise UsageError(
            f"Expected at least one row with at least one task to draw, got {dict(rows)}; pass "
            "AdaptationCurves."
        )
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    num_columns = max(map(len, rows.values()))
    figure = Figure(figsize=(2.6 * num_columns + 0.6, 2.0 * len(rows) + 0.9), layout="constrained")
    FigureCanvasAgg(figure)
    grid = figure.subplots(len(rows), num_columns, sharex=True, sharey="col", squeeze=False)
    for axes_of_row, (name, tasks) in zip(grid, rows.items(), strict=True):
        axes_of_row[0].set_ylabel(name)
        for axes, task in zip(axes_of_row, tasks, strict=True):
            _draw_task(axes, AdaptationCurves(*map(np.ravel, task)), during)
    for number, axes in enumerate(grid[0], start=1):
        axes.set_title(f"unseen task {number}", fontsize="medium")
    for axes in grid[-1]:
        axes.set_xlabel("x")
    figure.legend(
        *grid[0][0].get_legend_handles_labels(),
        loc="outside lower center",
        ncols=5,
        frameon=False,
    )
    _save(figure, path)


def plot_curves(
    curves: Mapping[str, Sequence[tuple[float, float, float]]],
    path: PathLike,
    *,
    xlabel: str,
    ylabel: str,
    title: str | None = None,
) -> None:
    """Draws curves over adaptation or training, with 95% bands.

    Ten methods have a colour each; the next ten have the same colours and dashed lines.

    The horizontal axis is logarithmic, except for a linear part from 0 to the first point above 0.
    The vertical axis is logarithmic if the means differ by a factor of ten or more. It ends
    with the means, so that a wide band is cut off and does not flatten all curves.

    Args:
        curves: by method, points (x, mean, half width of the 95% interval) with x >= 0, in
            increasing order.
        path: file to write; its suffix (png, svg, pdf) decides the format.
        xlabel: label of the horizontal axis.
        ylabel: label of the vertical axis.
        title: title above the figure; None: no title.

    Raises:
        UsageError: if there is nothing to draw, or no point has x > 0.
    """
    smallest = min((x for curve in curves.values() for x, _, _ in curve if x > 0), default=None)
    if smallest is None or not all(curves.values()):
        raise UsageError(
            "Expected at least one curve, each with points, some above x = 0, got "
            f"{ {name: len(curve) for name, curve in curves.items()} } points; pass the curve of "
            "an evaluation."
        )
    from matplotlib import rcParams
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.rcsetup import cycler

    figure = Figure(figsize=(6.0, 3.2), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    axes.set_prop_cycle(cycler(linestyle=["-", "--"]) * rcParams["axes.prop_cycle"])
    for name, curve in curves.items():
        x, mean, half_width = np.asarray(curve, float).T
        (line,) = axes.plot(x, mean, marker="o", markersize=3, linewidth=1.5, label=name)
        axes.fill_between(
            x, mean - half_width, mean + half_width, color=line.get_color(), alpha=0.1, linewidth=0
        )
    axes.set_xscale("symlog", linthresh=smallest, linscale=0.5)
    axes.set_xlim(left=0)
    _fit_height(axes, [mean for curve in curves.values() for _, mean, _ in curve])
    axes.set_xlabel(xlabel)
    axes.set_ylabel(ylabel)
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(labelsize="small", which="both")
    if title is not None:
        axes.set_title(title, fontsize="medium")
    _add_legend(figure)
    _save(figure, path)


def _add_legend(figure: Figure, most_columns: int = 4) -> None:
    """Adds a legend below, in as many columns as fit; the figure grows by its height."""
    count = len(figure.axes[0].get_legend_handles_labels()[0])
    width, height = figure.get_size_inches()
    for columns in range(most_columns, 0, -1):
        figure.set_size_inches(width, height + 0.2 * -(-count // columns))  # inches per row
        legend = figure.legend(
            loc="outside lower center", ncols=columns, frameon=False, fontsize="small"
        )
        figure.draw_without_rendering()
        if columns == 1 or legend.get_window_extent().width <= figure.bbox.width:
            return
        legend.remove()


def _draw_task(axes: Axes, task: AdaptationCurves, during: str) -> None:
    axes.plot(task.x, task.truth, color=TRUTH, linewidth=5, label="truth")
    axes.plot(task.x, task.before, color=BEFORE, linewidth=1.2, label="before adaptation")
    axes.plot(task.x, task.during, color=DURING, linewidth=1.2, label=during)
    axes.plot(task.x, task.after, color=AFTER, linewidth=1.8, label="after adaptation")
    axes.plot(
        task.support_x, task.support_y, "o", color=SUPPORT, markersize=4, label="support points"
    )
    _set_limits(axes, task)
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(labelsize="small")


def _set_limits(axes: Axes, task: AdaptationCurves) -> None:
    """Fits the axes to the truth, so that a prediction that is far off does not flatten it."""
    low, high = task.truth.min(), task.truth.max()
    margin = 0.35 * (high - low)
    axes.set_ylim(low - margin, high + margin)
    axes.set_xlim(task.x.min(), task.x.max())


def _fit_height(axes: Axes, means: Sequence[float]) -> None:
    """Fits the vertical axis to `means`, with a margin of 5% on either side."""
    low, high = np.nanmin(means), np.nanmax(means)
    if low > 0 and high >= 10 * low:
        axes.set_yscale("log")
        margin = (high / low) ** 0.05
        axes.set_ylim(low / margin, high * margin)
    elif high > low:
        margin = 0.05 * (high - low)
        axes.set_ylim(low - margin, high + margin)


def _save(figure: Figure, path: PathLike) -> None:
    """Writes a figure whole, or not at all."""
    image = io.BytesIO()
    figure.savefig(image, dpi=144, format=pathlib.Path(path).suffix.lstrip(".") or "png")
    write_atomically(path, image.getvalue())
