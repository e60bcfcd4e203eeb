"""The table of what fine-tuning an export is worth."""

import csv

import numpy as np

from benchmarks import fine_tuning


def test_the_last_epoch_counts():
    alpine, _, characters, _ = fine_tuning.SETTINGS
    results = {
        alpine.name: [
            {"initialization": [9, 1.0], "random weights": [1, 2.0]},
            {"initialization": [9, 3.0], "random weights": [1, 2.5]},
        ],
        characters.name: [{"initialization": [0, 0.75], "random weights": [1, 0.5]}],
    }
    rows = [line.split(" | ")[3:] for line in fine_tuning.table(results).splitlines()[2:]]
    assert rows == [
        ["2.000 (1.00, 3.00)", "2.250 (2.00, 2.50)", "1 of 2 tasks |"],
        ["0.750 (0.75)", "0.500 (0.50)", "1 of 1 tasks |"],
    ]


def test_points_are_in_the_units_of_the_function(tmp_path):
    with open(fine_tuning.write_alpine(0, tmp_path), encoding="utf-8") as file:
        header, *rows = csv.reader(file)
    assert header == ["x1", "x2", "y"]
    x = np.array(rows, float)[:, :2]
    assert x.shape == (100, 2)
    assert -10 <= x.min() < -8 < 8 < x.max() <= 10  # the domain
