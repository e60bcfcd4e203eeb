"""The comparison with JAX, diffrax and PyTorch, as far as it goes without them."""

import importlib.util

import numpy as np
import pytest

from benchmarks.meta_gradient import distance, jax_calls, report, torch_calls


def test_peers_that_are_not_installed_are_left_out(monkeypatch, capsys):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert jax_calls("dense", 1, [], ((), ())) == {}
    assert torch_calls(1, [], ((), ())) == {}
    assert capsys.readouterr().out.count("pip install 'amaml-tf[benchmark]'") == 2


def test_distances_are_relative_to_the_exact_gradient():
    exact = [np.array([3.0, 0.0]), np.array([[4.0]])]
    assert distance([np.array([3.0, 0.5]), np.array([[4.0]])], exact) == pytest.approx(0.1)


def test_the_report_has_a_line_for_each_program():
    row = {"network": "dense", "steps": 5, "program": "JAX scan", "seconds": 0.0123, "error": 1e-6}
    assert report([row]).splitlines()[-1] == "| dense | 5 | JAX scan | 12.3 | 1.0e-06 |"
