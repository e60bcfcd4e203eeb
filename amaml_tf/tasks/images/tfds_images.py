"""Image classification data sets of `tensorflow_datasets` as few-shot tasks."""

from collections.abc import Iterator

import tensorflow as tf

from amaml_tf.errors import UsageError
from amaml_tf.tasks.base import REGISTRY
from amaml_tf.tasks.class_split import read_split_file, split_by_names, split_by_seed
from amaml_tf.tasks.corrupt import CorruptData
from amaml_tf.tasks.images.encoded_images import EncodedImage
from amaml_tf.tasks.images.few_shot_images import FewShotImages
from amaml_tf.tasks.images.labelled_images import LabelledImages, decode_images, require_memory
from amaml_tf.tasks.sizes import Size
from amaml_tf.tasks.tfds_records import Builder, num_records, parsed_records, prepared_builder


@REGISTRY.register("tfds")
class TfdsImagesFamily(FewShotImages):
    """N-way K-shot episodes from any image classification data set of `tensorflow_datasets`.

    All splits of the data set are joined, and its classes are divided again: by `class_split_file`
    or, without one, at random by `split_seed` (64% for training, 16% for validation, 20% for
    testing).

    Args:
        name: name of the data set, such as "cifar100".
        data_dir: folder of data sets prepared by `tensorflow_datasets`.
        image_size: height and width to resize to; None: no resizing.
        channels: 1 (grey) or 3 (RGB).
        class_split_file: JSON file `{"train": [names], "validation": [names], "test": [names]}`.
        split_seed: selects the random division of the classes.
        max_corrupt: how many images that cannot be decoded may be left out. Each is logged.
        download: whether to download the data set if `data_dir` does not hold it.
        num_ways: N, classes of an episode.
        num_support: K, support images of each class in a training episode.
        num_query: Q, query images of each class in a training episode.
        num_test_support: K of validation and test episodes; None: as in training.
        num_test_query: Q of validation and test episodes; None: as in training.
        dtype: floating-point type of the inputs.

    Raises:
        UsageError: the data set or the split is missing, or too small for such episodes.
    """

    def __init__(
        self,
        *,
        name: str,
        data_dir: str | None,
        image_size: int | None = None,
        channels: int = 3,
        class_split_file: str | None = None,
        split_seed: int = 0,
        max_corrupt: int = 0,
        download: bool = False,
        num_ways: Size = 5,
        num_support: Size = 1,
        num_query: Size = 15,
        num_test_support: Size | None = None,
        num_test_query: Size | None = None,
        dtype: str = "float32",
    ) -> None:
        data = load_tfds_images(
            name,
            data_dir,
            image_size=image_size,
            channels=channels,
            max_corrupt=max_corrupt,
            download=download,
        )
        if class_split_file is None:
            class_split = split_by_seed(len(data.class_names), split_seed)
        else:
            class_split = split_by_names(
                data.class_names, read_split_file(class_split_file), class_split_file
            )
        super().__init__(
            data,
            class_split,
            num_ways=num_ways,
            num_support=num_support,
            num_query=num_query,
            num_test_support=num_test_support,
            num_test_query=num_test_query,
            dtype=dtype,
        )


def load_tfds_images(
    name: str,
    data_dir: str | None,
    *,
    tfds_splits: tuple[str, ...] | None = None,
    image_size: int | None = None,
    channels: int = 3,
    max_corrupt: int = 0,
    download: bool = False,
) -> LabelledImages:
    """Returns all images of a data set.

    Args:
        name: name of the data set in `tensorflow_datasets`, such as "cifar100".
        data_dir: folder of data sets prepared by `tensorflow_datasets`.
        tfds_splits: the splits to join; None: all.
        image_size: height and width to resize to; None: no resizing.
        channels: 1 (grey) or 3 (RGB).
        max_corrupt: how many images that cannot be decoded may be left out. Each is logged.
        download: whether to download the data set if `data_dir` does not hold it.

    Returns:
        The images; those without a label (-1) are left out.

    Raises:
        UsageError: no `data_dir`, the data set is not in it or damaged, or has no images with
            labels.
    """
    builder = prepared_builder(name, data_dir, download)
    image_key, label_key = _supervised_keys(name, builder)
    stored_shape = builder.info.features[image_key].shape
    stored_size = None if None in stored_shape else stored_shape[:2]
    if image_size is None and stored_size is None:
        raise UsageError(
            f"Expected an image size for data set {name!r}, whose images differ in size, got none; "
            "pass one, such as 84."
        )
    height, width = (image_size, image_size) if image_size is not None else stored_shape[:2]
    class_names = builder.info.features[label_key].names
    features = {
        image_key: tf.io.FixedLenFeature((), tf.string),
        label_key: tf.io.FixedLenFeature((), tf.int64),
    }
    batches = parsed_records(builder, features, tfds_splits)
    corrupt = CorruptData("images", max_corrupt)

    def labelled() -> Iterator[EncodedImage]:
        for file, first, batch in batches:
            pairs = zip(batch[image_key], batch[label_key], strict=True)
            for number, (image, label) in enumerate(pairs, start=first):
                where = f"{file}, record {number}"
                if label >= len(class_names):
                    expected = f"a label below {len(class_names)}"
                    corrupt.leave_out(where, expected, str(label))
                elif label >= 0:
                    yield EncodedImage(where, image, int(label))

    shape = (height, width, channels)
    require_memory(num_records(builder, tfds_splits), shape)
    images, labels = decode_images(labelled(), shape, corrupt=corrupt, stored_size=stored_size)
    return LabelledImages(images, labels, class_names)


def _supervised_keys(name: str, builder: Builder) -> tuple[str, str]:
    """Returns the names of the features that hold the image and its class."""
    import tensorflow_datasets as tfds

    keys = builder.info.supervised_keys or ("image", "label")
    kinds = (tfds.features.Image, tfds.features.ClassLabel)
    features = builder.info.features
    if len(keys) != 2 or not all(
        key in features and isinstance(features[key], kind)
        for key, kind in zip(keys, kinds, strict=True)
    ):
        raise UsageError(
            f"Expected a data set of images with one class label each, got {name!r} with features "
            f"{sorted(features)}; choose an image classification data set."
        )
    return keys
