"""Fuzzes the readers: `python tests/faults/fuzz_readers.py --inputs=10000 --seed=0 [READER ...]`.

Each input is a sound file that was damaged. It is refused with one sentence, or read to values that
satisfy what a reader promises; a wrong value that is taken as right counts as a traceback.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import io
import json
import logging
import pathlib
import random
import re
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator

import fuzzing
import numpy as np
import small_data
import tensorflow as tf
from absl import flags

from amaml_tf.commands import flag_files
from amaml_tf.commands.reporting import stored_evaluation
from amaml_tf.evaluation import EVALUATION_FILE
from amaml_tf.experiment import CONFIG_FILE, Experiment
from amaml_tf.tasks import REGISTRY
from amaml_tf.tasks.class_split import read_split_file, split_by_names
from amaml_tf.tasks.corrupt import CorruptData
from amaml_tf.tasks.images.encoded_images import EncodedImage
from amaml_tf.tasks.images.labelled_images import decode_images
from amaml_tf.tasks.ratings.ratings_file import read_ratings_csv
from amaml_tf.tasks.tfds_records import parsed_records, prepared_builder
from amaml_tf.training import DROPPED_FILE, VALIDATION_FILE
from amaml_tf.training.csv_rows import CsvRows
from amaml_tf.training.validation import best_step
from amaml_tf.user_files import encoding_of

Attempt = Callable[[random.Random], str]


def require(holds: bool, promise: str) -> None:
    """Raises ValueError, which counts as a traceback, if a promise of a reader is broken."""
    if not holds:
        raise ValueError(f"broken promise: {promise}")


def ratings(folder: pathlib.Path) -> Attempt:
    """Reads a CSV file of ratings."""
    rows = [f"u{i % 7},i{i // 7},{i % 5 + 0.5},{i}" for i in range(21)]
    sound = [
        "\n".join(rows).encode(),
        "\r\n".join(["item,user,rating,timestamp", *rows]).encode("utf-8-sig"),
        "\n".join(['"ä, b",x,3', *(row.rsplit(",", 1)[0] for row in rows)]).encode("utf-16"),
    ]

    def attempt(rng: random.Random) -> str:
        path = folder / "ratings.csv"
        path.write_bytes(fuzzing.damaged(rng.choice(sound), rng))
        most = rng.choice([0, 0, 3])
        found = read_ratings_csv(str(path), most)
        require(bool(np.all(np.isfinite(found.values))), "finite ratings")
        require(all(1 <= len(name) <= 256 for name in (*found.users, *found.items)), "names")
        pairs = set(zip(found.users, found.items, strict=True))
        require(len(pairs) == len(found.values), "one rating of a user for an item")
        text = path.read_bytes().decode(encoding_of(path, "a file"))
        lines = sum(bool(line.strip()) for line in re.split("\r\n|\n|\r", text))
        require(lines - most - 1 <= len(pairs) <= lines, "no row lost in silence")
        return "sound"

    return attempt


def images(_: pathlib.Path) -> Attempt:
    """Decodes an image in one of the formats."""
    from io import BytesIO

    from PIL import Image

    pixels = np.random.default_rng(0).integers(0, 256, (9, 12, 3), np.uint8)
    modes = {"PNG": ("RGB", "L", "P", "RGBA", "1", "LA"), "JPEG": ("RGB", "L", "CMYK")}
    sound = []
    for kind in ("PNG", "JPEG", "BMP", "GIF"):
        for mode in modes.get(kind, ("RGB", "L", "P")):
            stream = BytesIO()
            Image.fromarray(pixels).convert(mode).save(stream, kind)
            sound.append(stream.getvalue())

    def attempt(rng: random.Random) -> str:
        data = fuzzing.damaged(rng.choice(sound), rng)
        shape = (6, 5, rng.choice([1, 3]))
        found, _ = decode_images(
            [EncodedImage("image", data, 0)], shape, corrupt=CorruptData("images")
        )
        require(found.shape == (1, *shape) and found.dtype == np.uint8, "the shape asked for")
        return "sound"

    return attempt


def class_splits(folder: pathlib.Path) -> Attempt:
    """Reads the JSON file of a class split."""
    names = [f"class{i}" for i in range(6)]
    sound = json.dumps({"train": names[:3], "validation": names[3:4], "test": names[4:]}).encode()

    def attempt(rng: random.Random) -> str:
        path = folder / "split.json"
        path.write_bytes(fuzzing.damaged(sound, rng))
        split = split_by_names(names, read_split_file(str(path)), str(path))
        labels = [label for part in split.values() for label in part]
        require(len(set(labels)) == len(labels), "every class once")
        require(len(split["train"]) > 0, "classes for training")
        return "sound"

    return attempt


def configurations(folder: pathlib.Path) -> Attempt:
    """Reads the config.json of a run."""
    Experiment(hidden_units=(3, 4), final_time=0.5).write(folder)
    path = folder / CONFIG_FILE
    sound = path.read_bytes()

    def attempt(rng: random.Random) -> str:
        path.write_bytes(fuzzing.damaged(sound, rng))
        Experiment.read(folder)
        return "sound"

    return attempt


def results(folder: pathlib.Path) -> Attempt:
    """Reads what a run has written of itself: its evaluation, its validations, its logs."""
    evaluation = {"meta_step": 2, "unit": "time", "settings": {}, "before": {}, "after": {}}
    sound = {
        EVALUATION_FILE: json.dumps(evaluation).encode(),
        VALIDATION_FILE: b"step,loss\n1,0.5\n2,0.25\n",
        DROPPED_FILE: b"step,episodes,undone\n1,1 3,0\n2,,1\n",
    }

    def attempt(rng: random.Random) -> str:
        for name, content in sound.items():
            (folder / name).write_bytes(fuzzing.damaged(content, rng))
        found = stored_evaluation(folder / EVALUATION_FILE)
        require(found is None or "meta_step" in found, "an evaluation has its meta-step")
        with contextlib.redirect_stderr(io.StringIO()):  # it tells of each that it sets aside
            rows = CsvRows(folder / DROPPED_FILE, step=2).read()
        for path in folder.glob("dropped-damaged-*.csv"):
            path.unlink()
        require(all(int(row["step"]) <= 2 for row in rows), "rows of later meta-steps are removed")
        require(best_step(folder, [1, 2]) in (1, 2), "the best is one of those there")
        return "sound"

    return attempt


def flag_lines(folder: pathlib.Path) -> Attempt:
    """Reads a flag file."""
    lines = ["# comment", "--task=sinusoid", "--hidden_units=3,4", "--nodownload", "--seed=1"]
    sound = "\n".join([*lines, "--final_time=0.5", ""]).encode()

    def attempt(rng: random.Random) -> str:
        path = folder / "flags.cfg"
        path.write_bytes(fuzzing.damaged(sound, rng))
        flags.FLAGS.unparse_flags()
        try:
            flag_files.parse(["amaml", f"--flagfile={path}"])
        except SystemExit as ending:
            return fuzzing.told(str(ending.code))
        return "sound"

    return attempt


def tfds_records(folder: pathlib.Path) -> Attempt:
    """Reads MovieLens as `tensorflow_datasets` prepares it, with one file damaged."""
    small_data.movielens("100k", folder / "sound")
    features = {"user_id": tf.io.FixedLenFeature((), tf.string)}
    place = folder / "damaged"
    shutil.copytree(folder / "sound", place)
    files = [path for path in place.rglob("*") if path.is_file()]
    kept = {path: path.read_bytes() for path in files}

    def attempt(rng: random.Random) -> str:
        path = rng.choice(files)
        path.write_bytes(fuzzing.damaged(kept[path], rng))
        try:
            builder = prepared_builder("movielens/100k-ratings", str(place))
            users = [len(each.features["user_id"]) for each in parsed_records(builder, features)]
            require(sum(users) == 600, "all records")
        finally:
            path.write_bytes(kept[path])
        return "sound"

    return attempt


def folders(folder: pathlib.Path) -> Attempt:
    """Makes a family of a folder of images, one of which is damaged, a pipe, a folder, or gone."""
    arguments = small_data.image_folder(folder / "images")
    arguments["data_dir"] = str(folder / "images")
    files = sorted((folder / "images").rglob("*.png"))
    kept = {path: path.read_bytes() for path in files}

    def attempt(rng: random.Random) -> str:
        path = rng.choice(files)
        path.write_bytes(fuzzing.damaged(kept[path], rng))
        try:
            most = rng.choice([0, 2])
            family = REGISTRY["image_folder"](**small_data.SIZES, **arguments, max_corrupt=most)
            require(family.num_outputs == 3, "the ways asked for")
        finally:
            path.write_bytes(kept[path])
        return "sound"

    return attempt


READERS: dict[str, Callable[[pathlib.Path], Attempt]] = {
    "ratings": ratings,
    "images": images,
    "class_splits": class_splits,
    "configurations": configurations,
    "flag_files": flag_lines,
    "results": results,
    "tfds_records": tfds_records,
    "image_folders": folders,
}


def run(reader: str, num_inputs: int, seed: int) -> Iterator[str]:
    """Yields how each input of a reader ended."""
    logger = logging.getLogger("amaml_tf")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with tempfile.TemporaryDirectory() as folder:
            attempt = READERS[reader](pathlib.Path(folder))
            for number in range(num_inputs):
                rng = random.Random(f"{reader} {seed} {number}")
                outcome = fuzzing.outcome(attempt, rng)
                yield outcome if not outcome.startswith("traceback") else f"{outcome} [{number}]"
    finally:
        logger.setLevel(level)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--inputs", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("readers", nargs="*", choices=[*READERS, []], default=[])
    asked = parser.parse_args()
    failed = 0
    for name in asked.readers or READERS:
        start = time.monotonic()
        counts: collections.Counter[str] = collections.Counter()
        for end in run(name, asked.inputs, asked.seed):
            counts[end.split(":")[0]] += 1
            if end.startswith(("traceback", "slow")):
                print(end[:500], flush=True)
        fuzzing.report(name, counts, time.monotonic() - start)
        failed += counts["traceback"] + counts["slow"]
    sys.exit(bool(failed))
