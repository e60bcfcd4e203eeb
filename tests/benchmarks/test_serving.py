"""The table of latencies."""

from benchmarks.serving import Latency, measured, table


def test_first_and_later_calls_are_told_apart():
    calls = []
    found = measured(lambda: calls.append(1), 20)
    assert len(calls) == 21
    assert 0 <= found.median <= found.late


def test_ratios_are_to_the_learner():
    text = table({"n": {"learner.adapt": Latency(1, 0.2, 0.3), "other": Latency(2, 0.1, 0.4)}})
    assert text.splitlines()[-1] == "| n | `other` | 2e+03 | 100 | 400 | 0.5 | 1.3 |"
