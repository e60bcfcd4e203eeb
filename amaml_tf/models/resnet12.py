"""ResNet-12, the network of few-shot classification on 84x84 images."""

from collections.abc import Iterator, Sequence

import keras

from amaml_tf.models.initializers import glorot_initializers
from amaml_tf.models.registry import REGISTRY

_CONVOLUTIONS = 4  # of a block, with that of its shortcut


@REGISTRY.register("resnet12")
def resnet12(
    input_shape: Sequence[int],
    num_classes: int,
    filters: int = 64,
    num_blocks: int = 4,
    dtype: str | None = None,
    seed: int | None = None,
) -> keras.Model:
    """Returns ResNet-12: residual blocks of three convolutions, each of which halves the image.

    A block has three 3x3 convolutions with batch normalization, a shortcut of a 1x1 convolution,
    leaky ReLUs and 2x2 max pooling. Each block has twice the filters of the one before.

    Args:
        input_shape: height, width and channels of an image.
        num_classes: number of logits.
        filters: channels of the first block. Default 64: 8.0 million parameters.
        num_blocks: number of blocks. Default 4, of 12 layers.
        dtype: floating-point type or Keras dtype policy; None: Keras's default.
        seed: seed of the initial weights (Glorot uniform); None: different in every call.

    Returns:
        A built Keras model, [batch, height, width, channels] -> [batch, num_classes].

    Reference: Oreshkin, Rodriguez, Lacoste, "TADAM: Task dependent adaptive metric for improved
    few-shot learning", NeurIPS 2018, section 3.3; without its task conditioning.
    """
    *initializers, last = glorot_initializers(seed, _CONVOLUTIONS * num_blocks + 1)
    inputs = keras.Input(tuple(input_shape), dtype=dtype)
    x, left = inputs, iter(initializers)
    for number in range(num_blocks):
        x = _block(x, filters * 2**number, left, dtype)
    x = keras.layers.GlobalAveragePooling2D(dtype=dtype)(x)
    outputs = keras.layers.Dense(num_classes, kernel_initializer=last, dtype=dtype)(x)
    return keras.Model(inputs, outputs, name="resnet12")


def _block(
    x: keras.KerasTensor,
    filters: int,
    initializers: Iterator[keras.Initializer],
    dtype: str | None,
) -> keras.KerasTensor:
    def convolution(x: keras.KerasTensor, size: int) -> keras.KerasTensor:
        x = keras.layers.Conv2D(
            filters,
            size,
            padding="same",
            use_bias=False,  # normalization would subtract the bias again
            kernel_initializer=next(initializers),
            dtype=dtype,
        )(x)
        return keras.layers.BatchNormalization(dtype=dtype)(x)

    def rectified(x: keras.KerasTensor) -> keras.KerasTensor:
        return keras.layers.LeakyReLU(0.1, dtype=dtype)(x)

    shortcut = convolution(x, 1)
    x = convolution(rectified(convolution(rectified(convolution(x, 3)), 3)), 3)
    x = rectified(keras.layers.Add(dtype=dtype)([x, shortcut]))
    return keras.layers.MaxPooling2D(2, padding="same", dtype=dtype)(x)
