"""The quickstart, cut short: learns, compares, draws, exports and adapts through the export."""

import keras
import numpy as np
import pytest

from amaml_tf import load_initialization, quickstart


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    return tmp_path_factory.mktemp("quickstart")


def test_runs_from_end_to_end(directory, monkeypatch, capsys):
    monkeypatch.setattr(quickstart, "NUM_UNSEEN_TASKS", 6)
    errors = quickstart.main(str(directory), num_meta_steps=15)
    assert set(errors) == {quickstart.LEARNED, quickstart.JOINT, quickstart.RANDOM}
    assert errors[quickstart.LEARNED] < errors[quickstart.RANDOM]
    printed = capsys.readouterr().out
    for name, error in errors.items():
        assert f"{error:.3f}" in next(line for line in printed.splitlines() if name in line)
    assert (directory / "adaptation.png").read_bytes().startswith(b"\x89PNG")
    model = load_initialization(directory / "export")
    assert isinstance(model, keras.Model)
    assert np.shape(model(np.zeros((3, 1)))) == (3, 1)
