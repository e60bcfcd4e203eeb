"""The few-shot image network of MAML."""

from collections.abc import Sequence

import keras

from amaml_tf.errors import UsageError
from amaml_tf.models.initializers import glorot_initializers
from amaml_tf.models.registry import REGISTRY

DOWNSAMPLINGS = ("stride", "max_pool")


@REGISTRY.register("cnn")
def convolutional_network(
    input_shape: Sequence[int],
    num_classes: int,
    filters: int = 64,
    num_blocks: int = 4,
    downsampling: str = "stride",
    batch_normalization: bool = True,
    dtype: str | None = None,
    seed: int | None = None,
) -> keras.Model:
    """Returns MAML's image network: blocks of 3x3 convolution, batch normalization and ReLU.

    Each block halves the image, and one dense layer gives the logits. `downsampling="stride"` is
    MAML's network for Omniglot: convolutions of stride 2, and as features the mean over the
    positions of the last block. `"max_pool"` is its network for miniImageNet: convolutions of
    stride 1, each followed by 2x2 max pooling, and as features all positions of the last block.

    Args:
        input_shape: height, width and channels of an image.
        num_classes: number of logits.
        filters: channels of every convolution (64 for Omniglot, 32 for miniImageNet in MAML).
        num_blocks: number of blocks.
        downsampling: "stride" or "max_pool".
        batch_normalization: whether to normalize before the ReLU; if not, convolutions have biases.
        dtype: floating-point type or Keras dtype policy; None: Keras's default.
        seed: seed of the initial weights (Glorot uniform); None: different in every call.

    Returns:
        A built Keras model, [batch, height, width, channels] -> [batch, num_classes].

    Raises:
        UsageError: unknown downsampling, or an image too small to be halved in every block.

    Reference: Finn, Abbeel, Levine, "Model-Agnostic Meta-Learning for Fast Adaptation of Deep
    Networks", ICML 2017, section 5.2.
    """
    if downsampling not in DOWNSAMPLINGS:
        raise UsageError(
            f"Expected downsampling to be one of {DOWNSAMPLINGS}, got {downsampling!r}; "
            "use one of them."
        )
    if downsampling == "max_pool" and min(input_shape[:2]) < 2**num_blocks:
        raise UsageError(
            f"Expected images of at least {2**num_blocks} pixels a side to halve them "
            f"{num_blocks} times, got {tuple(input_shape[:2])}; use fewer blocks or larger images."
        )
    initializers = glorot_initializers(seed, num_blocks + 1)
    inputs = keras.Input(tuple(input_shape), dtype=dtype)
    x = inputs
    for initializer in initializers[:-1]:
        x = _block(x, filters, downsampling, batch_normalization, initializer, dtype)
    if downsampling == "stride":
        x = keras.layers.GlobalAveragePooling2D(dtype=dtype)(x)
    else:
        x = keras.layers.Flatten(dtype=dtype)(x)
    outputs = keras.layers.Dense(num_classes, kernel_initializer=initializers[-1], dtype=dtype)(x)
    return keras.Model(inputs, outputs, name="convolutional_network")


def _block(
    x: keras.KerasTensor,
    filters: int,
    downsampling: str,
    batch_normalization: bool,
    initializer: keras.Initializer,
    dtype: str | None,
) -> keras.KerasTensor:
    x = keras.layers.Conv2D(
        filters,
        kernel_size=3,
        strides=2 if downsampling == "stride" else 1,
        padding="same",
        use_bias=not batch_normalization,  # normalization would subtract the bias again
        kernel_initializer=initializer,
        dtype=dtype,
    )(x)
    if batch_normalization:
        x = keras.layers.BatchNormalization(dtype=dtype)(x)
    x = keras.layers.ReLU(dtype=dtype)(x)
    if downsampling == "max_pool":
        x = keras.layers.MaxPooling2D(pool_size=2, dtype=dtype)(x)
    return x
