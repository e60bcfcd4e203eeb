"""Tiny data sets, as the families of tasks find them on a disk."""

import itertools
import pathlib
from typing import Any

import numpy as np
import tensorflow as tf

from amaml_tf.tasks.images import cifar_fs

SIZES = {"num_support": 2, "num_query": 1}


def data_of(name: str, folder: pathlib.Path) -> dict[str, Any]:
    """Arguments of a registered family, beside its sizes, with data written to `folder`."""
    make = {
        "omniglot": omniglot,
        "cifar_fs": cifar100,
        "tfds": lambda folder: {"name": "cifar100", **cifar100(folder)},
        "image_folder": image_folder,
        "movielens_100k": lambda folder: movielens("100k", folder),
        "movielens_1m": lambda folder: movielens("1m", folder),
        "ratings_csv": ratings_csv,
    }.get(name)
    return {} if make is None else make(folder)


def cifar100(folder: pathlib.Path) -> dict[str, Any]:
    """CIFAR-100 as `tensorflow_datasets` prepares it, of 5 + 1 images a class."""
    names = sorted(itertools.chain(*cifar_fs.CLASS_SPLIT.values()))
    coarse = {"coarse_label": [f"coarse{i}" for i in range(20)]}
    write_images("cifar100", folder, {"train": 5, "test": 1}, names, (32, 32, 3), coarse)
    return {"data_dir": str(folder), "num_ways": 3}


def omniglot(folder: pathlib.Path) -> dict[str, Any]:
    """Omniglot as `tensorflow_datasets` prepares it, of 2 + 1 images a character."""
    names = [str(label) for label in range(1623)]
    others = {"alphabet": [str(i) for i in range(50)]}
    write_images("omniglot", folder, {"train": 2, "test": 1}, names, (105, 105, 3), others)
    return {"data_dir": str(folder), "num_ways": 3}


def write_images(
    name: str,
    folder: pathlib.Path,
    counts: dict[str, int],
    names: list[str],
    shape: tuple[int, int, int],
    others: dict[str, list[str]],
) -> None:
    """Writes `counts` images of each class to the splits of a data set, in the colour of its label.

    `others` are labels that the data set has beside the class.
    """
    import tensorflow_datasets as tfds
    from tensorflow_datasets.core import SequentialWriter

    builder = tfds.builder(name, data_dir=folder, try_gcs=False)
    features = builder.info.features
    features["label"].names = names
    for other, classes in others.items():
        if hasattr(features[other], "names"):
            features[other].names = classes
    pathlib.Path(builder.data_dir).mkdir(parents=True)
    writer = SequentialWriter(builder.info, max_examples_per_shard=1000)
    writer.initialize_splits(list(counts))
    for split, count in counts.items():
        examples = [
            {
                "image": np.full(shape, label % 256, np.uint8),
                "label": names[label],
                **dict.fromkeys(others, 0),
                **({"id": f"{split}{label}_{number}"} if "id" in features else {}),
                **({"alphabet_char_id": 0} if "alphabet_char_id" in features else {}),
            }
            for number in range(count)
            for label in range(len(names))
        ]
        writer.add_examples({split: examples})
    writer.close_all()


def image_folder(folder: pathlib.Path) -> dict[str, Any]:
    """Folders of 20 classes, 3 images each."""
    for label in range(20):
        (folder / f"class{label}").mkdir(parents=True)
        for number in range(3):
            image = tf.io.encode_png(np.full((9, 12, 3), 10 * label + number, np.uint8))
            (folder / f"class{label}" / f"{number}.png").write_bytes(image.numpy())
    return {"data_dir": str(folder), "image_size": 6, "num_ways": 3}


def ratings() -> list[tuple[int, int, float, int]]:
    """User, item, rating and time of 50 users, each of 12 items."""
    rng = np.random.default_rng(0)
    pairs = itertools.product(range(50), range(12))
    times = rng.permutation(600).tolist()
    values = rng.integers(1, 6, 600).astype(float).tolist()
    return [(user, item, *rest) for (user, item), *rest in zip(pairs, values, times, strict=True)]


def ratings_csv(folder: pathlib.Path) -> dict[str, Any]:
    """A file of `ratings`."""
    path = folder / "ratings.csv"
    path.write_text("".join(f"{','.join(map(str, row))}\n" for row in ratings()))
    return {"data_dir": str(path), "num_factors": 2}


def movielens(size: str, folder: pathlib.Path) -> dict[str, Any]:
    """MovieLens as `tensorflow_datasets` prepares it, of `ratings`."""
    import tensorflow_datasets as tfds
    from tensorflow_datasets.core import SequentialWriter

    builder = tfds.builder(f"movielens/{size}-ratings", data_dir=folder, try_gcs=False)
    pathlib.Path(builder.data_dir).mkdir(parents=True)
    writer = SequentialWriter(builder.info, max_examples_per_shard=1000)
    writer.initialize_splits(["train"])
    unused = {
        "movie_title": "",
        "movie_genres": [0],
        "user_gender": True,
        "raw_user_age": 20.0,
        "bucketized_user_age": 18.0,
        "user_occupation_label": 0,
        "user_occupation_text": "",
        "user_zip_code": "",
    }
    examples = [
        {
            "user_id": str(user),
            "movie_id": str(item),
            "user_rating": value,
            "timestamp": time,
            **{name: v for name, v in unused.items() if name in builder.info.features},
        }
        for user, item, value, time in ratings()
    ]
    writer.add_examples({"train": examples})
    writer.close_all()
    return {"data_dir": str(folder), "num_factors": 2}
