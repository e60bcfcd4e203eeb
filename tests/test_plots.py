"""Figures: what is drawn of what."""

import re

import numpy as np
import pytest

from amaml_tf import plots


def curves(amplitude=1.0):
    x = np.linspace(-1, 1, 20)[:, np.newaxis]
    truth = amplitude * np.sin(x)
    return plots.AdaptationCurves(x[::5], truth[::5], x, truth, 0 * x, truth / 2, truth)


@pytest.mark.parametrize("suffix", ["png", "svg"])
def test_draws_a_row_for_each_start_and_a_column_for_each_task(tmp_path, suffix):
    rows = {"one start": [curves(), curves(2)], "another": [curves(), curves(2)]}
    path = tmp_path / f"figure.{suffix}"
    plots.draw_adaptation(rows, path, during="half-way")
    drawn = path.read_bytes()
    assert drawn.startswith({"png": b"\x89PNG", "svg": b"<?xml"}[suffix])
    if suffix == "svg":
        for text in ("one start", "another", "unseen task 2", "half-way", "support points"):
            assert f"<!-- {text} -->".encode() in drawn
        assert b"unseen task 3" not in drawn


def test_refuses_to_draw_nothing(tmp_path):
    nothing: tuple[dict[str, list], ...] = ({}, {"a start": []})
    for rows in nothing:
        with pytest.raises(ValueError, match="Expected at least one row with at least one task"):
            plots.draw_adaptation(rows, tmp_path / "figure.png")


def test_draws_a_curve_and_a_band_for_each_method(tmp_path):
    curve = [(0, 1.0, 0.1), (1, 0.8, 0.1), (10, 0.5, 0.05), (100, 0.4, 0.0)]
    path = tmp_path / "curves.svg"
    plots.plot_curves(
        {"one": curve, "another": curve[:3]}, path, xlabel="steps", ylabel="nRMSE", title="A title"
    )
    drawn = path.read_bytes()
    for text in ("one", "another", "steps", "nRMSE", "A title"):
        assert f"<!-- {text} -->".encode() in drawn


def test_no_two_of_many_curves_look_the_same(tmp_path):
    curves = {f"method {n}": [(0, 1.0, 0.0), (1, 0.1 + n, 0.0)] for n in range(12)}
    plots.plot_curves(curves, tmp_path / "curves.svg", xlabel="steps", ylabel="nRMSE")
    drawn = (tmp_path / "curves.svg").read_text()
    styles = re.findall(r'style="(fill: none; [^"]*stroke-width: 1.5[^"]*)"', drawn)
    assert len(set(styles)) == 12


@pytest.mark.parametrize(("length", "columns"), [(5, 4), (12, 3), (17, 2), (90, 1)])
def test_the_legend_has_the_columns_that_fit(length, columns):
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.0, 3.2), layout="constrained")
    axes = figure.subplots()
    for _ in range(13):
        axes.plot([0, 1], label="m" * length)
    plots._add_legend(figure)
    (legend,) = figure.legends
    assert len({round(text.get_window_extent().x0) for text in legend.get_texts()}) == columns
    assert figure.get_size_inches()[1] > 3.2 + 0.15 * 13 / columns


@pytest.mark.parametrize("curves_", [{}, {"one": []}, {"one": [(0, 1.0, 0.1)]}])
def test_refuses_to_draw_no_curve(tmp_path, curves_):
    with pytest.raises(ValueError, match="Expected at least one curve, each with points"):
        plots.plot_curves(curves_, tmp_path / "figure.png", xlabel="", ylabel="")


@pytest.mark.parametrize(
    ("means", "scale", "low", "high"),
    [((0.5, 1.0, 2.5), "linear", 0.4, 2.6), ((0.5, 5.0), "log", 0.445, 5.61)],
)
def test_the_height_is_that_of_the_means(means, scale, low, high):
    from matplotlib.figure import Figure

    axes = Figure().subplots()
    plots._fit_height(axes, means)
    assert axes.get_yscale() == scale
    np.testing.assert_allclose(axes.get_ylim(), (low, high), rtol=1e-2)
