"""The larger models: what of them is learned, and the weights they begin with."""

from typing import Any

import numpy as np
import pytest

import amaml_tf as amaml
from amaml_tf import models

SMALL: dict[str, Any] = {"vocabulary_size": 20, "width": 8, "num_heads": 2, "num_blocks": 1}
TEXTS = np.random.default_rng(0).integers(0, 20, (4, 6))


def test_resnet12_has_eight_million_parameters():
    assert models.resnet12((84, 84, 3), 5).count_params() == pytest.approx(8.0e6, rel=0.02)


def test_lora_alone_is_learned_and_begins_with_the_weights_given(tmp_path):
    whole = models.transformer((6,), 3, **SMALL, seed=1)
    path = str(tmp_path / "whole.weights.h5")
    whole.save_weights(path)
    updated = models.transformer((6,), 3, **SMALL, lora_rank=2, weights_file=path, seed=2)
    np.testing.assert_allclose(updated(TEXTS), whole(TEXTS), rtol=1e-6)
    names = {variable.name for variable in updated.trainable_variables}
    assert names == {"lora_kernel_a", "lora_kernel_b"}
    # Two for each of query, key, value, their output, two dense layers and the logits.
    assert len(updated.trainable_variables) == 14


@pytest.mark.parametrize("content", [None, b"no weights"])
def test_weights_that_are_none_are_told(content, tmp_path):
    path = tmp_path / "file.weights.h5"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(amaml.UsageError, match="Expected the weights of 'transformer'"):
        models.transformer((6,), 3, **SMALL, weights_file=str(path))


def test_lower_layers_of_the_mobilenet_are_frozen():
    model = models.mobilenet_v3_small((32, 32, 3), 5, num_frozen_layers=153, seed=0)
    names = [variable.path for variable in model.trainable_variables]
    assert [name.split("/")[-1] for name in names] == ["kernel", "gamma", "beta", "kernel", "bias"]
    assert names[0] == "conv_1/kernel"
    with pytest.raises(amaml.UsageError, match="Expected at most 157 frozen layers"):
        models.mobilenet_v3_small((32, 32, 3), 5, num_frozen_layers=158)
    with pytest.raises(amaml.UsageError, match="Expected images of at least 32x32 pixels"):
        models.mobilenet_v3_small((28, 28, 1), 5)


def test_heads_must_divide_the_width():
    with pytest.raises(amaml.UsageError, match="Expected a width that 3 heads divide, got 8"):
        models.transformer((6,), 3, width=8, num_heads=3)
