"""Labelled images in memory, and the decoding of image files."""

import dataclasses
from collections.abc import Sequence

import numpy as np
import tensorflow as tf

from amaml_tf.errors import UsageError

DECODE_BATCH = 256


@dataclasses.dataclass(frozen=True)
class LabelledImages:
    """Images in memory, in any order.

    Attributes:
        images: uint8 of shape [images, height, width, channels].
        labels: integers of shape [images], 0 to the number of classes - 1.
        class_names: name of each class, by label.
    """

    images: np.ndarray
    labels: np.ndarray
    class_names: Sequence[str]


def decode_images(
    encoded: tf.data.Dataset, shape: tuple[int, int, int], *, same_size: bool
) -> tuple[np.ndarray, np.ndarray]:
    """Decodes images on all cores and resizes them by area.

    Args:
        encoded: pairs of an encoded image (PNG, JPEG, BMP or GIF; scalar string) and a label
            (scalar integer).
        shape: height, width and channels (1: grey, 3: RGB) of the result.
        same_size: whether all images have the same size and can be resized in batches.

    Returns:
        Images, uint8 of shape [images, *shape], and their labels, of shape [images].

    Raises:
        UsageError: an image cannot be decoded.
    """

    def decode(image: tf.Tensor, label: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        return tf.io.decode_image(image, channels=shape[2], expand_animations=False), label

    def resize(image: tf.Tensor, label: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        if image.shape[-3:-1] == shape[:2]:
            return image, label
        resized = tf.image.resize(image, shape[:2], method="area")
        return tf.cast(tf.round(resized), tf.uint8), label

    images = encoded.map(decode, num_parallel_calls=tf.data.AUTOTUNE)
    if same_size:
        images = images.batch(DECODE_BATCH).map(resize, num_parallel_calls=tf.data.AUTOTUNE)
    else:
        images = images.map(resize, num_parallel_calls=tf.data.AUTOTUNE).batch(DECODE_BATCH)
    try:
        batches, labels = zip(*images.as_numpy_iterator(), strict=True)
    except tf.errors.InvalidArgumentError as error:
        raise UsageError(
            f"Expected images that TensorFlow can decode, got a broken one ({error.message:.200}); "
            "remove or repair it."
        ) from error
    return np.concatenate(batches), np.concatenate(labels)
