"""The small networks that the papers use, built of Keras layers alone.

Any Keras model will do in their place.
"""

from collections.abc import Sequence

import keras
import numpy as np

DOWNSAMPLINGS = ("stride", "max_pool")


def multilayer_perceptron(
    input_shape: Sequence[int],
    num_outputs: int,
    hidden_units: Sequence[int] = (32, 32),
    activation: str = "tanh",
    dtype: str | None = None,
    seed: int | None = None,
) -> keras.Model:
    """Dense layers: the network of the regression experiments (2 x 32 tanh in Adjoint MAML).

    Args:
        input_shape: shape of one input, without the batch axis; flattened if it has several axes.
        num_outputs: how many numbers to predict (no activation on the last layer).
        hidden_units: width of each hidden layer.
        activation: name of a Keras activation for the hidden layers.
        dtype: floating-point type or Keras dtype policy; None: Keras's default.
        seed: of the initial weights (Glorot uniform); None: different in every call.

    Returns:
        A built Keras model, [batch, *input_shape] -> [batch, num_outputs].
    """
    initializers = _glorot_initializers(seed, len(hidden_units) + 1)
    inputs = keras.Input(tuple(input_shape), dtype=dtype)
    x = keras.layers.Flatten(dtype=dtype)(inputs) if len(input_shape) > 1 else inputs
    for units, initializer in zip(hidden_units, initializers, strict=False):
        x = keras.layers.Dense(units, activation, kernel_initializer=initializer, dtype=dtype)(x)
    outputs = keras.layers.Dense(num_outputs, kernel_initializer=initializers[-1], dtype=dtype)(x)
    return keras.Model(inputs, outputs, name="multilayer_perceptron")


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
    """Blocks of 3x3 convolution, batch normalization and ReLU: MAML's few-shot image network.

    Each block halves the image, and one dense layer gives the logits. `downsampling="stride"` is
    MAML's network for Omniglot: convolutions of stride 2, and the mean over the last positions as
    the features. `"max_pool"` is its network for miniImageNet: convolutions of stride 1, each
    followed by 2x2 max pooling, and all of the last positions as the features.

    Args:
        input_shape: height, width and channels of an image.
        num_classes: number of logits.
        filters: channels of every convolution (64 for Omniglot, 32 for miniImageNet in MAML).
        num_blocks: number of blocks.
        downsampling: "stride" or "max_pool".
        batch_normalization: whether to normalize before the ReLU; if not, convolutions have biases.
        dtype: floating-point type or Keras dtype policy; None: Keras's default.
        seed: of the initial weights (Glorot uniform); None: different in every call.

    Returns:
        A built Keras model, [batch, height, width, channels] -> [batch, num_classes].

    Raises:
        ValueError: unknown downsampling, or more blocks than the image can be halved for.

    Reference: Finn, Abbeel, Levine, "Model-Agnostic Meta-Learning for Fast Adaptation of Deep
    Networks", ICML 2017, section 5.2.
    """
    if downsampling not in DOWNSAMPLINGS:
        raise ValueError(
            f"Expected downsampling to be one of {DOWNSAMPLINGS}, got {downsampling!r}; "
            "use one of them."
        )
    if downsampling == "max_pool" and min(input_shape[:2]) < 2**num_blocks:
        raise ValueError(
            f"Expected images of at least {2**num_blocks} pixels a side to halve them "
            f"{num_blocks} times, got {tuple(input_shape[:2])}; use fewer blocks or larger images."
        )
    initializers = _glorot_initializers(seed, num_blocks + 1)
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


def _glorot_initializers(seed: int | None, count: int) -> list[keras.Initializer]:
    """One initializer a layer: a seed given to all would repeat itself in layers of equal shape."""
    if seed is None:
        return [keras.initializers.GlorotUniform() for _ in range(count)]
    seeds = np.random.SeedSequence(seed).generate_state(count)
    # Keras takes signed 32-bit seeds.
    return [keras.initializers.GlorotUniform(int(each) % 2**31) for each in seeds]
