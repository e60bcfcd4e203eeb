"""Few-shot image families: what an episode is made of, where images come from."""

import itertools
import json
import pathlib
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from amaml_tf import tasks
from amaml_tf.tasks import class_split
from amaml_tf.tasks.images import cifar_fs
from amaml_tf.tasks.images.labelled_images import LabelledImages
from amaml_tf.tasks.images.tfds_images import load_tfds_images

SPLIT = {"train": list(range(10)), "validation": list(range(10, 14)), "test": list(range(14, 20))}


def readable_images(num_classes=20, per_class=lambda label: 6) -> LabelledImages:
    """Images with the pixels class, number in the class, 255, 0; in random order."""
    pairs = [(label, i) for label in range(num_classes) for i in range(per_class(label))]
    images = np.array([[label, i, 255, 0] for label, i in pairs], np.uint8).reshape(-1, 2, 2, 1)
    labels = np.array([label for label, _ in pairs])
    order = np.random.default_rng(0).permutation(len(labels))
    return LabelledImages(images[order], labels[order], [f"c{label}" for label in range(20)])


def read(family, split="train", num_episodes=300, seed=0):
    """(class, number) of support and query images: [episodes, ways, each, 2], and all pixels."""
    stream = family.episodes(split, batch_size=num_episodes, seed=seed, num_batches=1)
    (support_x, support_y), (query_x, query_y) = next(stream.as_numpy_iterator())
    ways = family.num_outputs
    for labels in (support_y, query_y):
        expected = np.repeat(np.arange(ways), labels.shape[1] // ways)
        np.testing.assert_array_equal(labels, np.tile(expected, (num_episodes, 1)))
    return tuple(
        np.rint(x * 255).astype(int).reshape(num_episodes, ways, -1, 2, 2)
        for x in (support_x, query_x)
    )


def test_pixels_are_in_0_to_1():
    family = tasks.FewShotImages(readable_images(), SPLIT, num_query=2)
    (x, _), _ = next(iter(family.episodes("train", batch_size=8)))
    assert x.numpy().max() == 1
    assert x.numpy().min() == 0


def test_an_episode_has_distinct_classes_and_distinct_images():
    family = tasks.FewShotImages(readable_images(), SPLIT, num_ways=4, num_support=2, num_query=3)
    support, query = read(family)
    images = np.concatenate([support, query], axis=2)
    classes, numbers = images[..., 0, 0], images[..., 0, 1]
    assert np.all(classes == classes[:, :, :1])
    assert all(len(set(each)) == 4 for each in classes[:, :, 0])
    assert all(len(set(each)) == 5 for each in numbers.reshape(-1, 5))


def test_classes_of_a_split_stay_in_it():
    family = tasks.FewShotImages(readable_images(), SPLIT, num_ways=4, num_query=1)
    for split, labels in SPLIT.items():
        for images in read(family, split):
            assert set(images[..., 0, 0].ravel()) == set(labels)


def test_classes_and_images_are_drawn_evenly():
    family = tasks.FewShotImages(readable_images(), SPLIT, num_ways=3, num_query=1)
    support, query = read(family, num_episodes=2000)
    classes = support[:, :, 0, 0, 0]
    # Five standard deviations of a binomial count.
    for way in range(3):
        counts = np.bincount(classes[:, way], minlength=10)
        assert np.all(np.abs(counts - 200) < 5 * np.sqrt(2000 * 0.1 * 0.9))
    for images in (support, query):
        counts = np.bincount(images[..., 0, 1].ravel(), minlength=6)
        assert np.all(np.abs(counts - 1000) < 5 * np.sqrt(6000 / 6 * 5 / 6))
    # All 720 ordered triples are possible; 2,000 draws leave out exp(-2000 / 720) = 6% of them.
    assert len({tuple(each) for each in classes}) > 640


def test_classes_of_different_sizes_are_used_to_the_full():
    data = readable_images(per_class=lambda label: 3 + label)
    family = tasks.FewShotImages(data, SPLIT, num_ways=4, num_support=2, num_query=1)
    support, query = read(family, num_episodes=500)
    images = np.concatenate([support, query], axis=2).reshape(-1, 2, 2)
    for label in SPLIT["train"]:
        numbers = set(images[images[:, 0, 0] == label][:, 0, 1])
        assert numbers == set(range(3 + label))


def test_rotations_are_classes_of_their_own():
    family = tasks.FewShotImages(
        readable_images(), SPLIT, num_ways=8, num_support=1, num_query=2, rotations=True
    )
    assert family.num_classes("train") == 40
    support, query = read(family)
    seen = set()
    for way in np.concatenate([support, query], axis=2).reshape(-1, 3, 2, 2):
        turns = {next(k for k in range(4) if np.rot90(image, -k)[1, 0] == 255) for image in way}
        assert len(turns) == 1
        turn = turns.pop()
        upright = np.rot90(way, -turn, axes=(1, 2))
        assert np.all(upright[:, 1, 1] == 0)
        assert len(set(upright[:, 0, 0])) == 1
        assert len(set(upright[:, 0, 1])) == 3
        seen.add((upright[0, 0, 0], turn))
    assert len(seen) == 40


def test_test_episodes_may_have_other_sizes():
    family = tasks.FewShotImages(
        readable_images(), SPLIT, num_ways=2, num_query=1, num_test_support=2, num_test_query=4
    )
    assert [images.shape[2] for images in read(family, "train")] == [1, 1]
    assert [images.shape[2] for images in read(family, "validation")] == [2, 4]
    assert [images.shape[2] for images in read(family, "test")] == [2, 4]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_ways": 7}, "at most 6 ways, the number of classes of split 'test', got 7; ask"),
        ({"num_query": 6}, r"at most 6 support and query images .*'train'.*got 1 \+ 6; ask for"),
        ({"num_test_query": 6}, r"at most 6 support and query images .*'test'.*got 1 \+ 6"),
    ],
)
def test_more_than_there_is(arguments, message):
    with pytest.raises(ValueError, match=message):
        tasks.FewShotImages(readable_images(), SPLIT, **{"num_query": 1, **arguments})


def test_too_few_validation_classes_matter_only_when_asked_for():
    family = tasks.FewShotImages(readable_images(), SPLIT, num_ways=5, num_query=1)
    with pytest.raises(ValueError, match="at most 4 ways, the number of classes of split 'valid"):
        family.episodes("validation", batch_size=1)


def test_split_by_seed_divides_all_classes():
    split = class_split.split_by_seed(100, seed=1)
    assert [len(split[name]) for name in ("train", "validation", "test")] == [64, 16, 20]
    assert sorted(itertools.chain(*split.values())) == list(range(100))
    assert split == class_split.split_by_seed(100, seed=1) != class_split.split_by_seed(100, seed=2)


@pytest.mark.parametrize(
    ("split", "message"),
    [
        ({"dev": ["a"]}, "Expected splits .*got 'dev' in .*; rename it"),
        (
            {"train": ["z"]},
            r"Expected classes of the data set in split 'train', got 'z' in .*\['a'",
        ),
        ({"train": ["a"], "test": ["a"]}, "got 'a' in splits 'train' and 'test' in .*; remove it"),
    ],
)
def test_wrong_splits_by_name(split, message):
    with pytest.raises(ValueError, match=message):
        class_split.split_by_names(["a", "b"], split)


def test_wrong_split_files(tmp_path):
    with pytest.raises(ValueError, match=r"Expected a JSON file .*got no file at"):
        class_split.read_split_file(str(tmp_path / "none.json"))
    (tmp_path / "broken.json").write_text("{")
    with pytest.raises(ValueError, match=r"Expected a JSON file .*broken\.json: "):
        class_split.read_split_file(str(tmp_path / "broken.json"))
    (tmp_path / "list.json").write_text("[]")
    with pytest.raises(ValueError, match="got another structure"):
        class_split.read_split_file(str(tmp_path / "list.json"))


def write_images(folder: pathlib.Path, value: int, size=(9, 12), count=3) -> None:
    folder.mkdir(parents=True)
    for number in range(count):
        image = tf.io.encode_png(np.full((*size, 3), value + number, np.uint8))
        (folder / f"{number}.png").write_bytes(image.numpy())
    (folder / "notes.txt").write_text("not an image")


def test_image_folder_with_split_folders(tmp_path):
    for split, start in (("train", 0), ("val", 100), ("test", 200)):
        for label in range(2):
            write_images(tmp_path / split / f"{split}{label}", start + 10 * label)
    family = tasks.ImageFolderFamily(data_dir=str(tmp_path), image_size=6, num_ways=2, num_query=2)
    assert family.input_shape == (6, 6, 3)
    for split, start in (("train", 0), ("validation", 100), ("test", 200)):
        (x, _), _ = next(iter(family.episodes(split, batch_size=8)))
        values = set(np.rint(x.numpy() * 255).astype(int).ravel())
        assert values <= {start + 10 * label + number for label in (0, 1) for number in range(3)}


def test_image_folder_split_by_file_and_by_seed(tmp_path):
    for label in range(10):
        write_images(tmp_path / "images" / f"c{label}", 10 * label, size=(4 + label, 5))
    names = {"train": ["c7", "c2"], "test": ["c1", "c9"]}
    (tmp_path / "split.json").write_text(json.dumps(names))
    arguments: dict[str, Any] = {
        "data_dir": str(tmp_path / "images"),
        "channels": 1,
        "num_query": 1,
    }
    by_file = tasks.ImageFolderFamily(
        class_split_file=str(tmp_path / "split.json"), image_size=4, num_ways=2, **arguments
    )
    assert by_file.splits == ("train", "test")
    (x, _), _ = next(iter(by_file.episodes("train", batch_size=8)))
    assert set((x.numpy() * 255 // 10).astype(int).ravel()) == {7, 2}
    by_seed = tasks.ImageFolderFamily(image_size=4, num_ways=2, **arguments)
    assert [by_seed.num_classes(split) for split in by_seed.splits] == [6, 2, 2]


def test_wrong_image_folders(tmp_path):
    for folder in (None, str(tmp_path / "none")):
        with pytest.raises(ValueError, match=r"Expected data_dir, a folder .*got .*; pass --data"):
            tasks.ImageFolderFamily(data_dir=folder)
    (tmp_path / "empty" / "a").mkdir(parents=True)
    with pytest.raises(ValueError, match=r"Expected image files \(\.png, .*got none in"):
        tasks.ImageFolderFamily(data_dir=str(tmp_path / "empty"))
    for split in ("train", "test"):
        write_images(tmp_path / "seen" / split / "a", 0)
    with pytest.raises(ValueError, match=r"Expected every class in one split, got .*divide the cl"):
        tasks.ImageFolderFamily(data_dir=str(tmp_path / "seen"))
    write_images(tmp_path / "broken" / "a", 0)
    (tmp_path / "broken" / "a" / "bad.png").write_bytes(b"no image")
    with pytest.raises(
        ValueError, match=r"Expected an image in PNG, .*got something else in .*ad\.png"
    ):
        tasks.ImageFolderFamily(data_dir=str(tmp_path / "broken"))


@pytest.fixture(scope="module")
def cifar_dir(tmp_path_factory):
    """A tiny CIFAR-100 as `tensorflow_datasets` prepares it: 5 + 1 images a class."""
    import tensorflow_datasets as tfds
    from tensorflow_datasets.core import SequentialWriter

    folder = tmp_path_factory.mktemp("tfds")
    builder = tfds.builder("cifar100", data_dir=folder, try_gcs=False)
    names = sorted(itertools.chain(*cifar_fs.CLASS_SPLIT.values()))
    builder.info.features["label"].names = names
    builder.info.features["coarse_label"].names = [f"coarse{i}" for i in range(20)]
    pathlib.Path(builder.data_dir).mkdir(parents=True)
    writer = SequentialWriter(builder.info, max_examples_per_shard=1000)
    writer.initialize_splits(["train", "test"])
    for split, count in (("train", 5), ("test", 1)):
        examples = [
            {
                "id": f"{split}{label}_{number}",
                "image": np.full((32, 32, 3), label, np.uint8),
                "label": names[label],
                "coarse_label": 0,
            }
            for number in range(count)
            for label in range(100)
        ]
        writer.add_examples({split: examples})
    writer.close_all()
    return str(folder)


def test_cifar_fs_has_the_published_sizes():
    assert [len(names) for names in cifar_fs.CLASS_SPLIT.values()] == [64, 16, 20]


def test_cifar_fs_reads_the_published_split(cifar_dir):
    family = tasks.CifarFewShotFamily(data_dir=cifar_dir, num_ways=16, num_query=5)
    assert family.input_shape == (32, 32, 3)
    names = sorted(itertools.chain(*cifar_fs.CLASS_SPLIT.values()))
    for split, expected in cifar_fs.CLASS_SPLIT.items():
        (x, _), _ = next(iter(family.episodes(split, batch_size=32)))
        labels = np.unique(np.rint(x.numpy() * 255).astype(int))
        assert {names[label] for label in labels} == set(expected)


def test_any_data_set_of_tensorflow_datasets(cifar_dir, tmp_path):
    by_seed = tasks.TfdsImagesFamily(
        name="cifar100", data_dir=cifar_dir, image_size=8, channels=1, num_query=5
    )
    assert by_seed.input_shape == (8, 8, 1)
    assert [by_seed.num_classes(split) for split in by_seed.splits] == [64, 16, 20]
    (tmp_path / "split.json").write_text(json.dumps({"train": ["bee", "bear"], "test": ["can"]}))
    by_file = tasks.TfdsImagesFamily(
        name="cifar100",
        data_dir=cifar_dir,
        class_split_file=str(tmp_path / "split.json"),
        num_ways=1,
        num_query=1,
    )
    assert [by_file.num_classes(split) for split in by_file.splits] == [2, 1]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"name": "cifar100", "data_dir": None}, "Expected data_dir, .*'cifar100', got none; pass"),
        ({"name": "no_such_set"}, "name of a data set of tensorflow_datasets, got 'no_such_set'"),
        (
            {"name": "mnist"},
            r"Expected data set 'mnist' at .*mnist.*got nothing there; .*tfds",
        ),
    ],
)
def test_data_sets_that_are_not_there(tmp_path, arguments, message):
    with pytest.raises(ValueError, match=message):
        tasks.TfdsImagesFamily(**{"data_dir": str(tmp_path), **arguments})


@pytest.fixture(scope="module")
def omniglot(omniglot_dir):
    return tasks.OmniglotFamily(data_dir=omniglot_dir, num_query=5)


def test_omniglot_split(omniglot):
    assert omniglot.input_shape == (28, 28, 1)
    assert [omniglot.num_classes(split) for split in omniglot.splits] == [4400, 400, 1692]


def test_omniglot_shows_ink_on_paper(omniglot):
    (x, _), _ = next(iter(omniglot.episodes("test", batch_size=32)))
    assert x.numpy().max() == 1
    assert 0.03 < x.numpy().mean() < 0.15


def test_omniglot_needs_no_more_images_than_there_are(omniglot_dir):
    with pytest.raises(ValueError, match=r"at most 20 support and query images .*got 5 \+ 16"):
        tasks.OmniglotFamily(data_dir=omniglot_dir, num_support=5, num_query=16)


def test_omniglot_matches_the_reader_of_tensorflow_datasets(omniglot_dir):
    import tensorflow_datasets as tfds

    data = load_tfds_images(
        "omniglot", omniglot_dir, tfds_splits=("train", "test"), image_size=28, channels=1
    )
    assert data.images.shape == (32460, 28, 28, 1)
    assert np.all(np.bincount(data.labels) == 20)
    dataset = tfds.load(
        "omniglot", split="test[-3:]", data_dir=omniglot_dir, download=False, try_gcs=False
    )
    for example, ours in zip(dataset.as_numpy_iterator(), data.images[-3:], strict=True):
        theirs = tf.image.resize(example["image"][..., :1], (28, 28), method="area")
        np.testing.assert_array_equal(ours, np.rint(theirs))
