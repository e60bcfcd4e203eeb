"""What users' files go through: each mistake is one sentence with file and line, or read right."""

import io
import json
import logging
import os
import pathlib
import zlib

import numpy as np
import pytest
import small_data
import tensorflow as tf
from PIL import Image

from amaml_tf import tasks
from amaml_tf.errors import UsageError
from amaml_tf.experiment import CONFIG_FILE, Experiment
from amaml_tf.tasks.class_split import read_split_file
from amaml_tf.tasks.corrupt import CorruptData
from amaml_tf.tasks.images import encoded_images, labelled_images
from amaml_tf.tasks.ratings import ratings_file
from amaml_tf.tasks.ratings.ratings_file import read_ratings_csv
from amaml_tf.tasks.tfds_records import prepared_builder


def refused(match, function, *arguments, **options):
    """Requires one sentence that matches."""
    with pytest.raises(UsageError, match=match) as error:
        function(*arguments, **options)
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 1000


def written(folder: pathlib.Path, data: str | bytes) -> str:
    (folder / "file").write_bytes(data.encode() if isinstance(data, str) else data)
    return str(folder / "file")


ROWS = [("u1", "i1", 4.0), ("u1", "i2", 3.5), ("u2", "i1", 1.0)]
LINES = "".join(f"{','.join(map(str, row))}\n" for row in ROWS)


@pytest.mark.parametrize(
    "data",
    [
        LINES,
        LINES.encode("utf-8-sig"),
        LINES.encode("utf-16"),
        LINES.encode("utf-32"),
        LINES.replace("\n", "\r\n"),
        LINES.replace("\n", "\r"),
        LINES.replace(",", " , "),
        "\n\n" + LINES + "\n\n",
        '"u1","i1","4"\n"u1",i2,3.5\nu2,i1,1e0',
        "item,user,rating\ni1,u1,4\ni2,u1,3.5\ni1,u2,1\n",
        "Rating;,Movie ID,title,userId\n4,i1,x,u1\n3.5,i2,y,u1\n1,i1,x,u2\n",
    ],
)
def test_ratings_in_every_dress_are_the_same(tmp_path, data):
    found = read_ratings_csv(written(tmp_path, data))
    assert [*zip(found.users, found.items, found.values, strict=True)] == ROWS


@pytest.mark.parametrize(
    ("data", "match"),
    [
        ("u1,i1,\n" + LINES, r"got 'u1,i1,' in .*file, line 1; correct it"),
        ("u1,i1\n", r"got 'u1,i1' in .*, line 1"),
        ("who,what,note\n" + LINES, r"or first a header with the columns user, item, rating"),
        ("user,user,rating\n" + LINES, r"one column 'user', got 2 of them in .*, line 1"),
        ("user,rating\nu,3\n", r"one column 'item', got 0 of them in .*, line 1"),
        (LINES + ",i9,3\n", r"name of a user, .* got 0 characters .*, line 4"),
        (LINES + "u9,,3\n", r"name of a item, .* got 0 characters .*, line 4"),
        (LINES + "u9,i9,1_0\n", r"numbers for rating and time, got 'u9,i9,1_0' in .*, line 4"),
        (LINES + "u9,i9,-inf\n", r"got 'u9,i9,-inf' in .*, line 4"),
        (LINES + "u9,i9,1e999\n", r"got 'u9,i9,1e999' in .*, line 4"),
        (LINES + "u9,i9,1e99\n", r"a rating of at most 1e\+09, got .*, line 4"),
        (LINES + 'u9,"i9,3\nu8,i8,3\n', r"a row of CSV, got u9,\"i9,3 .* in .*, line 4"),
        (LINES + f"u9,{'i' * 9000},3\n", r"1 to 256 characters, got 9000 characters .*, line 4"),
        (LINES + f"u9,{'i' * 100_000},3\n", r"at most 65536 characters, got more in .*, line 4"),
        (LINES + "u1,i2,2\n", r"got two in .*, lines 2 and 4; keep one"),
        (LINES + "u9,i9,3,5\n", r"with 3 cells, as in the first, got 'u9,i9,3,5' in .*, line 4"),
        (LINES.encode() + b"\xe9,i9,3\n", r"not UTF-8 at offset 30, line 4; save it as UTF-8"),
        (LINES.encode("utf-16")[:-1], r"not UTF-16 at offset 60, line 3"),
        (LINES.encode("utf-16-le"), r"with a NUL character in line 1; save it as UTF-8"),
        (b"\x89PNG\r\n\x1a\n", r"not UTF-8 at offset 0, line 1"),
    ],
)
def test_wrong_ratings(tmp_path, data, match):
    refused(match, read_ratings_csv, written(tmp_path, data))


def test_corrupt_rows_are_left_out_up_to_a_number_and_named(tmp_path, caplog):
    path = written(tmp_path, LINES + "u9,i9,x\nu9,,3\n")
    assert len(read_ratings_csv(path, max_corrupt=2).values) == 3
    assert [record.levelno for record in caplog.records] == [logging.WARNING] * 3
    assert f"Left out {path}, line 4: expected" in caplog.text
    assert f"Left out {path}, line 5: expected" in caplog.text
    assert "Left out 2 corrupt of 5 rows" in caplog.text
    match = r"at most 1 corrupt rows, got more, the last in .*, line 5 .*larger --max_corrupt"
    refused(match, read_ratings_csv, path, max_corrupt=1)
    wrong_first = written(tmp_path, "x,y,z\n" + LINES)
    refused("got 'x,y,z' in .*, line 1", read_ratings_csv, wrong_first, max_corrupt=9)


def test_large_files_are_refused_unread(tmp_path, monkeypatch):
    monkeypatch.setattr(ratings_file, "MOST_BYTES", 20)
    refused(r"of at most 20 bytes, got 30 bytes", read_ratings_csv, written(tmp_path, LINES))


def test_tiny_differences_are_no_ratings():
    users, items = (axis.ravel() for axis in np.meshgrid(range(20), range(5), indexing="ij"))
    values = np.where(items > 2, 1e-300, 2e-300)
    data = tasks.Ratings(users, items, values, np.zeros(100))
    refused("that differ from one another", tasks.RatingsFamily, data, num_support=2, num_query=2)


SPLIT = {"train": ["a"], "test": ["b"]}


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_class_splits_in_every_encoding(tmp_path, encoding):
    assert read_split_file(written(tmp_path, json.dumps(SPLIT).encode(encoding))) == SPLIT


@pytest.mark.parametrize(
    ("data", "match"),
    [
        ('{"train": ["a"], "train": ["b"]}', r"the name 'train' is there twice; correct it"),
        ('{"train": ["a", 1]}', "got another structure in"),
        ('{"train": [["a"]]}', "got another structure in"),
        ('{"test": ["a"]}', "got no classes for training in"),
        ('{"train": [\n"a",]}', r"line 2 column \d"),
        ("[" * 100_000, "too many brackets"),
        ("9" * 10_000, "file: Exceeds the limit"),
        (b'{"train": ["\xe9"]}', "not UTF-8 at offset 12, line 1"),
    ],
)
def test_wrong_class_splits(tmp_path, data, match):
    refused(match, read_split_file, written(tmp_path, data))


@pytest.mark.parametrize(
    ("data", "match"),
    [
        ("[]", "another structure"),
        ("{", "config.json: Expecting"),
        (b"\xff", "not UTF-8 at offset 0"),
        ('{"seed": 1, "seed": 2}', "'seed' is there twice"),
        ('{"seed": -1}', "Expected seed to be 0 or more, got -1"),
        ('{"final_time": 1' + 400 * "0" + "}", "final_time to be a finite number"),
        ('{"hidden_units": [[1]]}', "hidden_units to be whole numbers"),
        ('{"task": {}}', "task to be a word"),
    ],
)
def test_wrong_configurations(tmp_path, data, match):
    (tmp_path / CONFIG_FILE).write_bytes(data if isinstance(data, bytes) else data.encode())
    refused(match, Experiment.read, tmp_path)


@pytest.mark.parametrize("path", ["~nobody-of-this-name/x", "gs://bucket/x", "a\0b", "x" * 600])
def test_paths_that_are_none(path):
    refused("Expected a", read_ratings_csv, path)
    refused("Expected ", tasks.REGISTRY["image_folder"], data_dir=path)


def png(size=(6, 6), mode="RGB", kind="PNG") -> bytes:
    stream = io.BytesIO()
    Image.new(mode, size, 1).save(stream, kind)
    return stream.getvalue()


def bomb(width: int, height: int) -> bytes:
    """A PNG whose header announces an image of another size than it has."""
    data = bytearray(png())
    data[16:24] = width.to_bytes(4, "big") + height.to_bytes(4, "big")
    data[29:33] = zlib.crc32(data[12:29]).to_bytes(4, "big")
    return bytes(data)


def family_with(tmp_path, data: bytes | None, **options) -> tasks.FewShotImages:
    arguments = small_data.image_folder(tmp_path) | small_data.SIZES
    if data is not None:
        (tmp_path / "class3" / "bad.png").write_bytes(data)
    return tasks.ImageFolderFamily(**arguments, **options)


@pytest.mark.parametrize(
    ("data", "came"),
    [
        (b"", "got something else"),
        (b"text", "got something else"),
        (png()[:-30], r"an image that is whole, got \("),
        (png(kind="TIFF"), "got something else"),
        (bomb(20_000, 20_000), "a decompression bomb, an image of too many pixels"),
        (bomb(2**31 - 1, 2**31 - 1), "a decompression bomb, an image of too many pixels"),
    ],
)
def test_a_broken_image_is_named(tmp_path, data, came):
    refused(rf"{came}.* in .*class3/bad\.png; correct it", family_with, tmp_path, data)


def test_broken_images_are_left_out_up_to_a_number(tmp_path, caplog):
    family = family_with(tmp_path, b"text", max_corrupt=1)
    assert "bad.png" in caplog.text
    assert "Left out 1 corrupt of 61 images" in caplog.text
    sound = family_with(tmp_path / "sound", None)
    for one, other in zip(
        *(f.episodes("train", batch_size=4, num_batches=1) for f in (family, sound)), strict=True
    ):
        tf.nest.map_structure(np.testing.assert_array_equal, one, other)


def test_pipes_and_folders_are_no_images_and_hidden_files_are_passed_over(tmp_path):
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "folder.png").mkdir()
    for name in ("pipe.png", "folder.png"):
        target = tmp_path / f"with_{name}"
        arguments = small_data.image_folder(target)
        (tmp_path / name).rename(target / "class0" / name)
        refused(
            f"got no ordinary file in .*{name}",
            tasks.REGISTRY["image_folder"],
            **arguments,
        )
    (tmp_path / "hidden" / ".git").mkdir(parents=True)
    (tmp_path / "hidden" / ".git" / "a.png").write_bytes(b"")
    family = family_with(tmp_path / "hidden", None)
    assert sum(family.num_classes(split) for split in family.splits) == 20


@pytest.mark.parametrize("kind", ["BMP", "GIF", "PNG", "JPEG"])
@pytest.mark.parametrize("channels", [1, 3])
def test_every_format_in_grey_and_in_colour(tmp_path, kind, channels):
    image = np.full((8, 8, 3), 100, np.uint8)
    stream = io.BytesIO()
    Image.fromarray(image).save(stream, kind)
    found, _ = labelled_images.decode_images(
        [encoded_images.EncodedImage("x", stream.getvalue(), 0)],
        (8, 8, channels),
        corrupt=CorruptData("images"),
    )
    np.testing.assert_allclose(found.astype(int), 100, atol=1)


def test_images_of_two_channels(tmp_path):
    refused(r"channels to be 1 \(grey\) or 3", family_with, tmp_path, None, channels=2)


def test_images_that_fit_in_no_memory(tmp_path):
    arguments = small_data.image_folder(tmp_path) | {"image_size": 10**6}
    refused("fit in half of the memory", tasks.REGISTRY["image_folder"], **arguments)


def only(folder: str, pattern: str) -> pathlib.Path:
    (found,) = pathlib.Path(folder).rglob(pattern)
    return found


@pytest.mark.parametrize(
    ("pattern", "damage", "match"),
    [
        (
            "*tfrecord*",
            lambda data: data[:-7],
            r"100k.*tfrecord.* cannot be read from record 5\d\d",
        ),
        ("*tfrecord*", lambda data: data[:5000] + b"x" + data[5001:], "cannot be read from record"),
        ("*tfrecord*", lambda data: b"", r"Expected 600 records .*tfrecord.*, got 0; prepare"),
        ("*tfrecord*", lambda data: None, r"cannot be read from record 0 on"),
        ("dataset_info.json", lambda data: data[:-20], "a description of it that cannot be read"),
        ("dataset_info.json", lambda data: b"\xff", "a description of it that cannot be read"),
        ("features.json", lambda data: b"{", "Expected the features of a data set as JSON, got"),
    ],
)
def test_damaged_records(tmp_path, pattern, damage, match):
    arguments = small_data.movielens("100k", tmp_path)
    path = only(str(tmp_path), pattern)
    damaged = damage(path.read_bytes())
    path.unlink() if damaged is None else path.write_bytes(damaged)
    refused(match, tasks.REGISTRY["movielens_100k"], **small_data.SIZES, **arguments)


@pytest.mark.parametrize("name", ["huggingface:x", "cifar100/a=True", "../x", ""])
def test_names_of_data_sets_lead_nowhere_else(tmp_path, name):
    refused("Expected the name of a data set", prepared_builder, name, str(tmp_path))


X, Y = np.ones((4, 2)), np.ones((4, 1))


@pytest.mark.parametrize(
    ("x", "y", "kind", "match"),
    [
        ([[1, 2], [3]], Y, "regression", "support_x of split 'train' .*lists that make none"),
        (X.astype(complex), Y, "regression", "real numbers, got one of dtype complex128"),
        (X.astype(str), Y, "regression", "real numbers, got one of dtype <U"),
        (1e300 * X, Y, "regression", r"that float32 can hold in support_x .*such as 1e\+300"),
        (X, 0.5 * Y[:, 0], "classification", r"whole numbers in support_y .*such as 0\.5"),
        (X, np.nan * Y[:, 0], "classification", r"whole numbers in support_y .*such as nan"),
    ],
)
def test_what_a_generator_yields(x, y, kind, match):
    options = {"kind": kind, "num_outputs": 2} if kind == "classification" else {}
    refused(match, tasks.from_function, lambda split, rng: ((x, y), (x, y)), **options)


def test_nan_in_a_task_is_left_to_the_training():
    family = tasks.from_function(lambda split, rng: ((np.nan * X, Y), (X, Y)))
    ((x, _), _) = next(iter(family.episodes("train", batch_size=1)))
    assert np.isnan(x).all()
