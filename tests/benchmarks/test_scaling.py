"""The line through the memory of problems of different sizes."""

import numpy as np

from benchmarks.scaling import report, slope_of


def rows_of(memory):
    return [
        {"series": "tasks", "x": n, "tasks": n, "seconds": 0.002, "gradients": 7, "memory_mib": mib}
        for n, mib in memory
    ]


def test_the_slope_is_that_of_the_line():
    found = slope_of(rows_of([(1, 12.0), (4, 18.0), (64, 138.0)]))
    assert found is not None
    np.testing.assert_allclose(found, (2.0, 0.0), atol=1e-9)
    bent = slope_of(rows_of([(1, 12.0), (4, 18.0), (8, 46.0)]))
    assert bent is not None
    assert bent[1] > 1
    assert slope_of(rows_of([(1, 12.0), (4, 18.0)])) is None


def test_the_report_states_the_slope():
    text = report(rows_of([(1, 12.0), (4, 18.0), (64, 138.0)]))
    assert "| tasks | 64 | 2 | 0.0312 | 7 | 138 |" in text
    assert "Memory against tasks: 2 MiB a task; the line is off by at most 0 MiB." in text
