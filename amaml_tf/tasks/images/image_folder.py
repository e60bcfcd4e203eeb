"""Few-shot tasks from one folder of images per class, for data sets that cannot be shared."""

import pathlib

import tensorflow as tf

from amaml_tf.errors import UsageError
from amaml_tf.tasks.base import REGISTRY, SPLITS
from amaml_tf.tasks.class_split import (
    ClassSplit,
    read_split_file,
    split_by_names,
    split_by_seed,
)
from amaml_tf.tasks.images.few_shot_images import FewShotImages
from amaml_tf.tasks.images.labelled_images import LabelledImages, decode_images

EXTENSIONS = (".png", ".jpg", ".jpeg", ".bmp", ".gif")
# Usual names of the splits' folders.
SPLIT_FOLDERS = {"train": "train", "validation": "validation", "val": "validation", "test": "test"}


@REGISTRY.register("image_folder")
class ImageFolderFamily(FewShotImages):
    """N-way K-shot episodes from a folder that holds one folder of images per class.

    Either `data_dir` has folders `train`, `validation` (or `val`) and `test`, each with one folder
    per class. Or the folders of the classes are in `data_dir` itself. The classes are then divided
    by `class_split_file` or, without one, at random by `split_seed`: 64% for training, 16% for
    validation and 20% for testing.

    Args:
        data_dir: the folder. Files that do not end in .png, .jpg, .jpeg, .bmp or .gif are ignored.
        image_size: height and width that images are resized to, by area.
        channels: 1 (grey) or 3 (RGB).
        class_split_file: JSON file `{"train": [names], "validation": [names], "test": [names]}`.
        split_seed: selects the random division of the classes.
        num_ways: N, classes of an episode.
        num_support: K, support images of each class in a training episode.
        num_query: Q, query images of each class in a training episode.
        num_test_support: K of validation and test episodes; None: as in training.
        num_test_query: Q of validation and test episodes; None: as in training.
        dtype: floating-point type of the inputs.

    Raises:
        UsageError: the images or the split are missing, or too few for such episodes.
    """

    def __init__(
        self,
        *,
        data_dir: str | None,
        image_size: int = 84,
        channels: int = 3,
        class_split_file: str | None = None,
        split_seed: int = 0,
        num_ways: int = 5,
        num_support: int = 1,
        num_query: int = 15,
        num_test_support: int | None = None,
        num_test_query: int | None = None,
        dtype: str = "float32",
    ) -> None:
        class_folders, class_split = _find_classes(data_dir, class_split_file, split_seed)
        super().__init__(
            _load(class_folders, (image_size, image_size, channels)),
            class_split,
            num_ways=num_ways,
            num_support=num_support,
            num_query=num_query,
            num_test_support=num_test_support,
            num_test_query=num_test_query,
            dtype=dtype,
        )


def _find_classes(
    data_dir: str | None, class_split_file: str | None, split_seed: int
) -> tuple[list[pathlib.Path], ClassSplit]:
    """Returns the folders of all classes, and the split as positions in that list."""
    root = pathlib.Path(data_dir).expanduser() if data_dir is not None else None
    if root is None or not root.is_dir():
        raise UsageError(
            "Expected data_dir, a folder with one folder of images for each class, got "
            f"{data_dir}; pass --data_dir=FOLDER."
        )
    top = _subfolders(root)
    if top and all(folder.name in SPLIT_FOLDERS for folder in top):
        return _classes_of_split_folders(top)
    names = [folder.name for folder in top]
    if class_split_file is None:
        return top, split_by_seed(len(top), split_seed)
    return top, split_by_names(names, read_split_file(class_split_file))


def _classes_of_split_folders(
    split_folders: list[pathlib.Path],
) -> tuple[list[pathlib.Path], ClassSplit]:
    classes: list[pathlib.Path] = []
    split: ClassSplit = {name: [] for name in SPLITS}
    for split_folder in split_folders:
        for class_folder in _subfolders(split_folder):
            seen = [each for each in classes if each.name == class_folder.name]
            if seen:
                raise UsageError(
                    f"Expected every class in one split, got {seen[0]} and {class_folder}; classes "
                    "of test tasks must not be seen in training, so divide the classes, not the "
                    "images."
                )
            split[SPLIT_FOLDERS[split_folder.name]].append(len(classes))
            classes.append(class_folder)
    return classes, split


def _subfolders(folder: pathlib.Path) -> list[pathlib.Path]:
    return sorted(each for each in folder.iterdir() if each.is_dir())


def _load(class_folders: list[pathlib.Path], shape: tuple[int, int, int]) -> LabelledImages:
    files: list[str] = []
    labels: list[int] = []
    for label, folder in enumerate(class_folders):
        found = sorted(str(each) for each in folder.iterdir() if each.suffix.lower() in EXTENSIONS)
        files += found
        labels += [label] * len(found)
    if not files:
        raise UsageError(
            f"Expected image files ({', '.join(EXTENSIONS)}) in folders of classes, got none in "
            f"{[str(each) for each in class_folders[:3]]}; check --data_dir."
        )
    encoded = tf.data.Dataset.from_tensor_slices((files, labels)).map(
        lambda file, label: (tf.io.read_file(file), label), num_parallel_calls=tf.data.AUTOTUNE
    )
    images, image_labels = decode_images(encoded, shape, same_size=False)
    return LabelledImages(images, image_labels, [each.name for each in class_folders])
