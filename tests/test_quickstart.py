"""What a newcomer runs first, cut short: the quickstart, and the code of the README."""

import functools
import re
from typing import Any

import keras
import numpy as np
import project
import pytest

from amaml_tf import load_initialization, quickstart
from amaml_tf.functional import execution


@pytest.mark.long
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


def test_code_of_the_readme_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    in_graphs = execution.Execution(vectorize=True, jit_compile=False)
    monkeypatch.setattr(execution, "choose", lambda *_: in_graphs)
    text = (project.ROOT / "README.md").read_text(encoding="utf-8")
    blocks = re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL)
    assert len(blocks) == 3
    code = "\n".join(blocks).replace("epochs=5, steps_per_epoch=100", "epochs=1, steps_per_epoch=2")
    names: dict[str, Any] = {}
    exec(code.replace("num_batches=30", "num_batches=1"), names)
    assert names["answer"]["predictions"].shape == (10, 1)
    adapted = names["adapted_model"].evaluate(names["query_x"][:, :1], names["query_y"], verbose=0)
    assert np.isfinite(adapted).all()
