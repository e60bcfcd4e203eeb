"""The programs in export/README.md run as they stand."""

import re

import keras
import numpy as np
import pytest
from serving_data import EXPORT, examples

from amaml_tf import load_initialization
from amaml_tf.saved_model.lite import LITE_MODEL, lite_model

BLOCKS = re.findall(r"```python\n(.*?)```", (EXPORT / "README.md").read_text(), re.DOTALL)


@pytest.fixture
def place(served, tmp_path, monkeypatch):
    (tmp_path / "exports").mkdir()
    (tmp_path / "exports" / "initialization").symlink_to(served[1])
    monkeypatch.chdir(tmp_path)


def test_there_are_five():
    assert len(BLOCKS) == 5


@pytest.mark.parametrize("number", range(5))
def test_programs(place, served, number):
    block = BLOCKS[number]
    x, y = examples(12)
    if "ai_edge_litert" in block:
        pytest.importorskip("ai_edge_litert", reason="ai-edge-litert is not there")
        path = served[1] / "1" / "assets.extra" / LITE_MODEL
        path.write_bytes(lite_model(served[0], 12))
    exec(block, {"x": x, "y": y, "support_x": x, "support_y": y, "query_x": x})


def test_adam_still_fails_with_tfsmlayer(place):
    """The day this fails, the optimizer of the README can go."""
    block = next(block for block in BLOCKS if "TFSMLayer" in block)
    x, y = examples(12)
    with pytest.raises(ValueError, match="not a valid scope name"):
        exec(block.replace("SGD", "Adam"), {"x": x, "y": y, "keras": keras})


def test_the_optimizer_of_the_readme_takes_adams_steps(place):
    """The loss is that of Adam on the Keras model of the same export, step by step."""
    block = next(block for block in BLOCKS if "class Adam" in block)
    x, y = examples(12)
    names = {"x": x, "y": y}
    exec(block, names)
    model = load_initialization("exports/initialization")
    model.compile(keras.optimizers.Adam(1e-3), loss="mse")
    model.fit(x, y, epochs=3, verbose=0)
    expected = model.predict(x, verbose=0)
    np.testing.assert_allclose(names["model"].predict(x, verbose=0), expected, atol=1e-5)
