"""The quickstart, cut short: learns, compares, draws, exports and adapts through the export."""

import functools

import keras
import numpy as np

from amaml_tf import load_initialization, quickstart


def test_runs_from_end_to_end(tmp_path, monkeypatch, capsys):
    in_graphs = functools.partial(quickstart.make_learner, jit_compile="off")
    monkeypatch.setattr(quickstart, "make_learner", in_graphs)
    monkeypatch.setattr(quickstart, "NUM_UNSEEN_TASKS", 6)
    errors = quickstart.main(str(tmp_path), num_meta_steps=15)
    assert set(errors) == {quickstart.LEARNED, quickstart.JOINT, quickstart.RANDOM}
    assert errors[quickstart.LEARNED] < errors[quickstart.RANDOM]
    printed = capsys.readouterr().out
    for name, error in errors.items():
        assert f"{error:.3f}" in next(line for line in printed.splitlines() if name in line)
    assert (tmp_path / "adaptation.png").read_bytes().startswith(b"\x89PNG")
    model = load_initialization(tmp_path / "export")
    assert isinstance(model, keras.Model)
    assert np.shape(model(np.zeros((3, 1)))) == (3, 1)
