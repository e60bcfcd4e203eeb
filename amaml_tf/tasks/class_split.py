"""Division of classes into training, validation and test splits: by seed or by name."""

from collections.abc import Mapping, Sequence

import numpy as np

from amaml_tf.errors import UsageError
from amaml_tf.tasks.base import SPLITS
from amaml_tf.user_files import read_json

# Shares of the classes for training, validation and testing in CIFAR-FS and miniImageNet.
SHARES = (0.64, 0.16, 0.20)

ClassSplit = dict[str, list[int]]


def split_by_seed(
    num_classes: int, seed: int = 0, sizes: Sequence[int] | None = None
) -> ClassSplit:
    """Returns a random division of the classes into splits.

    Args:
        num_classes: how many classes there are, labelled from 0.
        seed: selects the division.
        sizes: numbers of classes for training, validation and testing; None: 64%, 16%, the rest.

    Returns:
        Labels of the classes of each split, in ascending order.

    Raises:
        UsageError: `sizes` do not add up to `num_classes`.
    """
    if sizes is None:
        train, validation = (round(share * num_classes) for share in SHARES[:2])
        sizes = (train, validation, num_classes - train - validation)
    if sum(sizes) != num_classes:
        raise UsageError(
            f"Expected class counts of the splits that add up to the {num_classes} classes of the "
            f"data, got {tuple(sizes)}; correct the counts, or use the whole data set."
        )
    order = np.random.default_rng(seed).permutation(num_classes)
    parts = np.split(order, np.cumsum(sizes)[:-1])
    return {split: sorted(part.tolist()) for split, part in zip(SPLITS, parts, strict=True)}


def split_by_names(
    class_names: Sequence[str], split: Mapping[str, Sequence[str]], where: str = "the division"
) -> ClassSplit:
    """Returns the division that lists of class names give; classes in no list are left out.

    Args:
        class_names: name of each class, by label.
        split: names of the classes of "train", "validation" and "test".
        where: the division is written, for messages.

    Returns:
        Labels of the classes of each split.

    Raises:
        UsageError: an unknown split or class, or a class that is there twice.
    """
    labels = {name: label for label, name in enumerate(class_names)}
    taken: dict[str, str] = {}
    for part, names in split.items():
        if part not in SPLITS:
            raise UsageError(f"Expected splits {SPLITS}, got {part!r} in {where}; rename it.")
        for name in names:
            if name not in labels:
                raise UsageError(
                    f"Expected classes of the data set in split {part!r}, got {name!r} in {where}; "
                    f"use names such as {list(class_names[:3])}."
                )
            if name in taken:
                raise UsageError(
                    f"Expected every class once, got {name!r} in splits {taken[name]!r} and "
                    f"{part!r} in {where}; remove it from one."
                )
            taken[name] = part
    return {part: [labels[name] for name in names] for part, names in split.items()}


def read_split_file(path: str) -> dict[str, list[str]]:
    """Reads `{"train": [names], "validation": [names], "test": [names]}` from a JSON file.

    A split may be left out, except "train".

    Raises:
        UsageError: the file does not exist, or it holds something else.
    """
    expected = 'a JSON file {"train": [class names], "validation": [...], "test": [...]}'
    split = read_json(path, expected)
    if not isinstance(split, dict) or not all(
        isinstance(names, list) and all(isinstance(name, str) for name in names)
        for names in split.values()
    ):
        raise UsageError(f"Expected {expected}, got another structure in {path}; correct it.")
    if not split.get("train"):
        raise UsageError(f"Expected {expected}, got no classes for training in {path}; add some.")
    return split
