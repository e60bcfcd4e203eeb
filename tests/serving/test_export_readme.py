"""The programs in export/README.md run as they stand."""

import re

import keras
import pytest
from serving_data import EXPORT, examples

from amaml_tf.saved_model.lite import LITE_MODEL, lite_model

BLOCKS = re.findall(r"```python\n(.*?)```", (EXPORT / "README.md").read_text(), re.DOTALL)


@pytest.fixture
def place(served, tmp_path, monkeypatch):
    (tmp_path / "exports").mkdir()
    (tmp_path / "exports" / "initialization").symlink_to(served[1])
    monkeypatch.chdir(tmp_path)


def test_there_are_four():
    assert len(BLOCKS) == 4


@pytest.mark.parametrize("number", range(4))
def test_programs(place, served, number):
    block = BLOCKS[number]
    x, y = examples(12)
    if "ai_edge_litert" in block:
        pytest.importorskip("ai_edge_litert", reason="ai-edge-litert is not there")
        path = served[1] / "1" / "assets.extra" / LITE_MODEL
        path.write_bytes(lite_model(served[0], 12))
    exec(block, {"x": x, "y": y, "support_x": x, "support_y": y, "query_x": x})


def test_adam_still_fails_with_tfsmlayer(place):
    """The day this fails, the advice in the README can go."""
    block = next(block for block in BLOCKS if "TFSMLayer" in block)
    x, y = examples(12)
    with pytest.raises(ValueError, match="not a valid scope name"):
        exec(block.replace("SGD", "Adam"), {"x": x, "y": y, "keras": keras})
