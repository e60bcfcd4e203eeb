"""Few-shot tasks from one folder of images per class, for data sets that cannot be shared."""

import concurrent.futures
import os
import pathlib
from collections.abc import Iterator, Sequence

from amaml_tf.errors import UsageError
from amaml_tf.tasks.base import REGISTRY, SPLITS
from amaml_tf.tasks.class_split import (
    ClassSplit,
    read_split_file,
    split_by_names,
    split_by_seed,
)
from amaml_tf.tasks.corrupt import CorruptData
from amaml_tf.tasks.images.encoded_images import MOST_BYTES, EncodedImage
from amaml_tf.tasks.images.few_shot_images import FewShotImages
from amaml_tf.tasks.images.labelled_images import LabelledImages, decode_images, require_memory
from amaml_tf.tasks.sizes import Size
from amaml_tf.user_files import user_path

EXTENSIONS = (".png", ".jpg", ".jpeg", ".bmp", ".gif")
READERS, READ_AT_A_TIME = 8, 64
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
        data_dir: the folder. Files that do not end in .png, .jpg, .jpeg, .bmp or .gif are ignored,
            and so are files and folders whose name begins with a dot.
        image_size: height and width that images are resized to, by area.
        channels: 1 (grey) or 3 (RGB).
        class_split_file: JSON file `{"train": [names], "validation": [names], "test": [names]}`.
        split_seed: selects the random division of the classes.
        max_corrupt: how many images that cannot be decoded may be left out. Each is logged.
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
        max_corrupt: int = 0,
        num_ways: Size = 5,
        num_support: Size = 1,
        num_query: Size = 15,
        num_test_support: Size | None = None,
        num_test_query: Size | None = None,
        dtype: str = "float32",
    ) -> None:
        class_folders, class_split = _find_classes(data_dir, class_split_file, split_seed)
        super().__init__(
            _load(class_folders, (image_size, image_size, channels), max_corrupt),
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
    root = user_path(data_dir) if data_dir is not None else None
    if root is None or not os.path.isdir(root):
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
    return top, split_by_names(names, read_split_file(class_split_file), class_split_file)


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
    return [each for each in _listed(folder) if each.is_dir()]


def _listed(folder: pathlib.Path) -> list[pathlib.Path]:
    """Returns what a folder holds, in order, but for names that begin with a dot."""
    try:
        return sorted(each for each in folder.iterdir() if not each.name.startswith("."))
    except OSError as error:
        raise UsageError(
            f"Expected a folder that can be read, got {folder} ({error.strerror}); check its "
            "permissions."
        ) from error


def _load(
    class_folders: list[pathlib.Path], shape: tuple[int, int, int], max_corrupt: int
) -> LabelledImages:
    files: list[tuple[pathlib.Path, int]] = []
    for label, folder in enumerate(class_folders):
        found = [each for each in _listed(folder) if each.suffix.lower() in EXTENSIONS]
        files += [(file, label) for file in found]
    if not files:
        raise UsageError(
            f"Expected image files ({', '.join(EXTENSIONS)}) in folders of classes, got none in "
            f"{[str(each) for each in class_folders[:3]]}; check --data_dir."
        )
    require_memory(len(files), shape)
    corrupt = CorruptData("images", max_corrupt)
    images, image_labels = decode_images(_read_all(files), shape, corrupt=corrupt)
    return LabelledImages(images, image_labels, [each.name for each in class_folders])


def _read_all(files: Sequence[tuple[pathlib.Path, int]]) -> Iterator[EncodedImage]:
    """Yields the files, some of which are read at a time."""
    with concurrent.futures.ThreadPoolExecutor(READERS) as pool:
        for start in range(0, len(files), READ_AT_A_TIME):
            yield from pool.map(_read, files[start : start + READ_AT_A_TIME])


def _read(file_and_label: tuple[pathlib.Path, int]) -> EncodedImage:
    file, label = file_and_label
    try:
        if not file.is_file():  # reading a pipe would wait for ever
            return EncodedImage(str(file), "no ordinary file", label)
        if (size := file.stat().st_size) > MOST_BYTES:
            return EncodedImage(str(file), f"a file of {size} bytes, more than {MOST_BYTES}", label)
        return EncodedImage(str(file), file.read_bytes(), label)
    except OSError as error:
        return EncodedImage(str(file), f"a file that cannot be read ({error.strerror})", label)
