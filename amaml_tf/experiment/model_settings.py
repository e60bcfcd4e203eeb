"""The settings of models: their sizes, and what of them is learned."""

from __future__ import annotations

import dataclasses

from amaml_tf import models
from amaml_tf.experiment.declaration import Declared, setting


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelSettings(Declared):
    """Plain values that make a model."""

    model: str | None = setting(
        "Network. Default: cnn for images, else mlp.", choices=lambda: models.REGISTRY
    )
    hidden_units: tuple[int, ...] | None = setting(
        "Width of each hidden layer.", of="model", least=1
    )
    activation: str | None = setting("Activation of the hidden layers.", of="model")
    filters: int | None = setting("Channels of every convolution.", of="model", least=1)
    num_blocks: int | None = setting("Number of convolutions.", of="model", least=1, most=100)
    downsampling: str | None = setting(
        "How a convolution halves the image.", of="model", choices=lambda: models.DOWNSAMPLINGS
    )
    batch_normalization: bool | None = setting("Normalize before the ReLU.", of="model")
    width: int | None = setting("Numbers that represent a token.", of="model", least=1)
    num_heads: int | None = setting("Attention heads of a block.", of="model", least=1)
    lora_rank: int | None = setting(
        "Learn low-rank updates (LoRA) of this rank alone. Default: learn everything.",
        of="model",
        least=1,
    )
    num_frozen_layers: int | None = setting(
        "Layers of the backbone, from the image on, that are not learned.", of="model", least=0
    )
    weights_file: str | None = setting(
        "Weights to begin with, which save_weights wrote. Default: random ones.", of="model"
    )
