"""MobileNetV3Small of Keras, of which the upper layers are learned."""

from collections.abc import Sequence

import keras

from amaml_tf.errors import UsageError
from amaml_tf.models.initializers import initialize_kernels, load_weights
from amaml_tf.models.registry import REGISTRY

_SMALLEST = 32  # pixels that it halves five times


@REGISTRY.register("mobilenet_v3_small")
def mobilenet_v3_small(
    input_shape: Sequence[int],
    num_classes: int,
    num_frozen_layers: int = 0,
    weights_file: str | None = None,
    dtype: str | None = None,
    seed: int | None = None,
) -> keras.Model:
    """Returns MobileNetV3Small of `keras.applications`, with a dense layer for the logits.

    It shows how to use any network of `keras.applications`: freeze what is not to be learned, and
    put a layer of the right size on top. Frozen layers are neither adapted nor meta-learned.

    Args:
        input_shape: height, width and channels of an image, with pixels in [0, 1].
        num_classes: number of logits.
        num_frozen_layers: how many layers of the backbone, from the image on, are frozen. The
            backbone has 157.
        weights_file: weights of the backbone that `save_weights` wrote, or those of Keras for
            `include_top=False`; None (default): random ones.
        dtype: floating-point type or Keras dtype policy; None: Keras's default.
        seed: seed of the initial weights (Glorot uniform); None: different in every call.

    Returns:
        A built Keras model, [batch, height, width, channels] -> [batch, num_classes].

    Raises:
        UsageError: the images are smaller than 32x32, more layers are to be frozen than there are,
            or the weights do not fit.
    """
    if min(input_shape[:2]) < _SMALLEST:
        raise UsageError(
            f"Expected images of at least {_SMALLEST}x{_SMALLEST} pixels for MobileNetV3Small, got "
            f"{tuple(input_shape[:2])}; use larger images (image_size), or --model=cnn."
        )
    before = keras.config.dtype_policy()
    try:  # the networks of keras.applications take no dtype
        keras.config.set_dtype_policy(dtype or before)
        backbone = keras.applications.MobileNetV3Small(
            tuple(input_shape),
            include_top=False,
            weights=None,
            pooling="avg",
            include_preprocessing=False,
        )
    finally:
        keras.config.set_dtype_policy(before)
    if num_frozen_layers > len(backbone.layers):
        raise UsageError(
            f"Expected at most {len(backbone.layers)} frozen layers, all of MobileNetV3Small, "
            f"got {num_frozen_layers}; freeze fewer."
        )
    inputs = keras.Input(tuple(input_shape), dtype=dtype)
    x = backbone(keras.layers.Rescaling(2.0, -1.0, dtype=dtype)(inputs))
    outputs = keras.layers.Dense(num_classes, dtype=dtype)(x)
    model = keras.Model(inputs, outputs, name="mobilenet_v3_small")
    initialize_kernels(model, seed)
    if weights_file is not None:
        load_weights(backbone, weights_file)
    for layer in backbone.layers[:num_frozen_layers]:
        layer.trainable = False
    return model
