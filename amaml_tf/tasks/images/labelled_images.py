"""Labelled images in memory, and the decoding of images."""

import dataclasses
import functools
import os
from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import tensorflow as tf

from amaml_tf.errors import UsageError
from amaml_tf.tasks.corrupt import CorruptData
from amaml_tf.tasks.images.encoded_images import CheckedImage, EncodedImage, checked

# At most so many images, and about so many pixels, are decoded at a time.
DECODE_BATCH = 256
DECODE_PIXELS = 2**27


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
    encoded: Iterable[EncodedImage],
    shape: tuple[int, int, int],
    *,
    corrupt: CorruptData,
    stored_size: tuple[int, int] | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Decodes images on all cores and resizes them by area.

    Args:
        encoded: the images (PNG, JPEG, BMP or GIF, of which the first frame counts).
        shape: height, width and channels (1: grey, 3: RGB) of the result.
        corrupt: counts the images that are left out because they cannot be decoded.
        stored_size: height and width that all images must have; None: any.

    Returns:
        Images, uint8 of shape [images, *shape], and their labels, of shape [images].

    Raises:
        UsageError: `shape` has other channels, there are more corrupt images than `corrupt` leaves
            out, or no sound one.
    """
    if shape[2] not in (1, 3):
        raise UsageError(
            f"Expected channels to be 1 (grey) or 3 (RGB), got {shape[2]}; pass one of them."
        )
    decode_all = _decoder(shape)
    images: list[np.ndarray] = []
    labels: list[int] = []
    with tf.device("CPU"):
        for batch in _batches(checked(encoded, corrupt, stored_size)):
            decoded, sound = _decode_batch(decode_all, batch, corrupt)
            images += decoded
            labels += sound
    corrupt.report(corrupt.count + len(labels))
    if not labels:
        raise UsageError("Expected images, got none that can be decoded; pass others.")
    return np.concatenate(images), np.array(labels)


@functools.lru_cache(maxsize=8)
def _decoder(shape: tuple[int, int, int]) -> tf.types.experimental.GenericFunction:
    """Returns what decodes a batch of images and resizes them to `shape`."""

    def decode(data: tf.Tensor) -> tf.Tensor:
        image = tf.io.decode_image(data, channels=shape[2], expand_animations=False)
        resized = tf.image.resize(
            tf.ensure_shape(image, (None, None, shape[2])), shape[:2], method="area"
        )
        return tf.cast(tf.round(resized), tf.uint8)

    signature, cores = tf.TensorSpec(shape, tf.uint8), os.cpu_count() or 1
    return tf.function(
        lambda batch: tf.map_fn(
            decode, batch, fn_output_signature=signature, parallel_iterations=cores
        ),
        input_signature=[tf.TensorSpec((None,), tf.string)],
        autograph=False,
    )


def _decode_batch(
    decode_all: tf.types.experimental.GenericFunction,
    batch: Sequence[EncodedImage],
    corrupt: CorruptData,
) -> tuple[list[np.ndarray], list[int]]:
    """Returns the decoded images of a batch, as arrays of one or more, and their labels."""
    try:
        together = decode_all(tf.constant([each.data for each in batch])).numpy()
    except tf.errors.InvalidArgumentError as error:
        if len(batch) == 1:
            reason = " ".join(error.message.split())
            corrupt.leave_out(batch[0].where, "an image that is whole", f"({reason:.100})")
            return [], []
        # TensorFlow does not say which image it is.
        alone = [_decode_batch(decode_all, [each], corrupt) for each in batch]
        return [each for images, _ in alone for each in images], [n for _, ns in alone for n in ns]
    return [together], [each.label for each in batch]


def _batches(images: Iterator[CheckedImage]) -> Iterator[list[EncodedImage]]:
    """Yields the images in batches of bounded size."""
    batch: list[EncodedImage] = []
    pixels = 0
    for image in images:
        batch.append(image.encoded)
        pixels += image.pixels
        if len(batch) == DECODE_BATCH or pixels >= DECODE_PIXELS:
            yield batch
            batch, pixels = [], 0
    if batch:
        yield batch


def require_memory(count: int, shape: tuple[int, int, int]) -> None:
    """Raises UsageError if so many images of this shape do not fit in half of the memory."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    needed = count * int(np.prod(shape, dtype=object))
    if needed > memory // 2:
        raise UsageError(
            f"Expected images that fit in half of the memory, {memory / 2**31:.3g} GiB, got "
            f"{count} of {shape[0]}x{shape[1]} pixels in {shape[2]} channels, "
            f"{needed / 2**30:.3g} GiB; pass a smaller --image_size, or fewer images."
        )
