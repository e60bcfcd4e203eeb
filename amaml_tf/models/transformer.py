"""A small transformer that classifies sequences of tokens."""

from collections.abc import Sequence

import keras

from amaml_tf.errors import UsageError
from amaml_tf.models.initializers import initialize_kernels, load_weights
from amaml_tf.models.registry import REGISTRY


@REGISTRY.register("transformer")
def transformer(
    input_shape: Sequence[int],
    num_classes: int,
    vocabulary_size: int = 1000,
    width: int = 128,
    num_blocks: int = 4,
    num_heads: int = 4,
    lora_rank: int | None = None,
    weights_file: str | None = None,
    dtype: str | None = None,
    seed: int | None = None,
) -> keras.Model:
    """Returns a transformer encoder: blocks of attention and a dense network, then a mean.

    Args:
        input_shape: (length,) of a sequence; more axes are flattened.
        num_classes: number of logits.
        vocabulary_size: tokens are 0 to this number - 1.
        width: numbers that represent a token.
        num_blocks: number of blocks. Default 4.
        num_heads: attention heads of a block.
        lora_rank: rank of the low-rank updates (LoRA) of all kernels, which are then all that is
            learned. None (default): everything is learned.
        weights_file: weights of the same model without LoRA, which `save_weights` wrote; None
            (default): random ones.
        dtype: floating-point type or Keras dtype policy; None: Keras's default.
        seed: seed of the initial weights (Glorot uniform); None: different in every call.

    Returns:
        A built Keras model, [batch, length] of integers -> [batch, num_classes].

    Raises:
        UsageError: the width cannot be divided by the heads.

    Reference: Vaswani et al., "Attention Is All You Need", NeurIPS 2017, with normalization before
    each layer. LoRA: Hu et al., "LoRA: Low-Rank Adaptation of Large Language Models", ICLR 2022.
    """
    if width % num_heads:
        raise UsageError(
            f"Expected a width that {num_heads} heads divide, got {width}; choose another of them."
        )
    inputs = keras.Input(tuple(input_shape), dtype="int32")
    x = keras.layers.Flatten(dtype="int32")(inputs) if len(input_shape) > 1 else inputs
    # Operations and layers of Keras alone, so that an export loads in plain Keras.
    positions = keras.ops.cumsum(keras.ops.ones_like(x), axis=1) - 1
    x = keras.layers.Add(dtype=dtype)(
        [
            keras.layers.Embedding(vocabulary_size, width, dtype=dtype)(x),
            keras.layers.Embedding(x.shape[1], width, dtype=dtype, name="positions")(positions),
        ]
    )
    for _ in range(num_blocks):
        x = _block(x, width, num_heads, dtype)
    x = keras.layers.GlobalAveragePooling1D(dtype=dtype)(_normalized(x, dtype))
    outputs = keras.layers.Dense(num_classes, dtype=dtype)(x)
    model = keras.Model(inputs, outputs, name="transformer")
    initialize_kernels(model, seed)
    if weights_file is not None:
        load_weights(model, weights_file)
    if lora_rank is not None:
        _learn_updates_alone(model, lora_rank, seed)
    return model


def _normalized(x: keras.KerasTensor, dtype: str | None) -> keras.KerasTensor:
    return keras.layers.LayerNormalization(dtype=dtype)(x)


def _block(
    x: keras.KerasTensor, width: int, num_heads: int, dtype: str | None
) -> keras.KerasTensor:
    attention = keras.layers.MultiHeadAttention(num_heads, width // num_heads, dtype=dtype)
    normalized = _normalized(x, dtype)
    x = keras.layers.Add(dtype=dtype)([x, attention(normalized, normalized)])
    hidden = keras.layers.Dense(4 * width, "gelu", dtype=dtype)(_normalized(x, dtype))
    return keras.layers.Add(dtype=dtype)([x, keras.layers.Dense(width, dtype=dtype)(hidden)])


def _learn_updates_alone(model: keras.Model, rank: int, seed: int | None) -> None:
    """Freezes all variables, and gives every dense kernel a low-rank update that is learned."""
    for variable in model.variables:
        variable.trainable = False
    for layer in model._flatten_layers():  # noqa: SLF001 - Keras has no public recursive list
        if isinstance(layer, keras.layers.Dense | keras.layers.EinsumDense):
            layer.enable_lora(rank)
    initialize_kernels(model, seed)
    for variable in model.trainable_variables:
        if variable.name == "lora_kernel_b":
            variable.assign(keras.ops.zeros_like(variable))  # the first update is none
