"""Code that is planted in files is never run, and nothing is written outside of given folders."""

import ast
import contextlib
import io
import json
import os
import pathlib
import pickle
import subprocess
import sys
import zipfile
from collections.abc import Callable

import keras
import numpy as np
import project
import pytest
import small_data
from keras.src.saving.serialization_lib import SafeModeScope

from amaml_tf import tasks, training
from amaml_tf.commands import flag_files
from amaml_tf.experiment import CONFIG_FILE, Experiment
from amaml_tf.saved_model import load_initialization
from amaml_tf.saved_model.versions import KERAS_MODEL
from amaml_tf.tasks.class_split import read_split_file
from amaml_tf.tasks.ratings.ratings_file import read_ratings_csv


class Bait:
    """Unpickled, it writes a file."""

    def __init__(self, marker: pathlib.Path) -> None:
        self.marker = marker

    def __reduce__(self):
        return pathlib.Path.touch, (self.marker,)


def payloads(marker: pathlib.Path) -> list[bytes]:
    """A pickle, arrays that hold one, and expressions of several languages."""
    array, arrays = io.BytesIO(), io.BytesIO()
    np.save(array, np.array([Bait(marker)], object), allow_pickle=True)
    np.savez(arrays, x=np.array([Bait(marker)], object))
    call = f"pathlib.Path({str(marker)!r}).touch()"
    return [
        pickle.dumps(Bait(marker)),
        array.getvalue(),
        arrays.getvalue(),
        f"__import__('pathlib').Path({str(marker)!r}).touch()".encode(),
        f"!!python/object/apply:os.mknod ['{marker}']".encode(),
        f'{{"task": "$(touch {marker})", "train": ["`touch {marker}`"]}}'.encode(),
        f"--task=`touch {marker}`\n--{call}".encode(),
    ]


def image_folder(path: pathlib.Path) -> None:
    path.rename(path.with_suffix(".png"))
    (path.parent / "data" / "class").mkdir(parents=True)
    path.with_suffix(".png").rename(path.parent / "data" / "class" / "x.png")
    tasks.REGISTRY["image_folder"](data_dir=str(path.parent / "data"))


def run_folder(path: pathlib.Path) -> None:
    path.rename(path.parent / CONFIG_FILE)
    Experiment.read(path.parent)


def checkpoint_folder(path: pathlib.Path) -> None:
    folder = path.parent / training.CHECKPOINT_FOLDER
    folder.mkdir()
    path.rename(folder / "checkpoint")
    training.require_checkpoint(path.parent)


READERS: dict[str, Callable[[pathlib.Path], object]] = {
    "ratings": lambda path: read_ratings_csv(str(path)),
    "class_split": lambda path: read_split_file(str(path)),
    "flag_file": lambda path: flag_files.parse(["amaml", f"--flagfile={path}"]),
    "images": image_folder,
    "config": run_folder,
    "checkpoint": checkpoint_folder,
}


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("number", range(7))
def test_nothing_that_is_read_is_run(tmp_path, reader, number, new_flags):
    marker = tmp_path / "marker"
    path = tmp_path / "file"
    path.write_bytes(payloads(marker)[number])
    with contextlib.suppress(ValueError, SystemExit):
        READERS[reader](path)
    assert not marker.exists()


def test_the_bait_works(tmp_path):
    pickle.loads(payloads(tmp_path / "marker")[0])
    assert (tmp_path / "marker").exists()


@pytest.fixture
def planted_module(tmp_path, monkeypatch):
    """A module that writes a file when it is imported; returns the file."""
    (tmp_path / "path").mkdir()
    marker = tmp_path / "marker"
    code = f"import pathlib\npathlib.Path({str(marker)!r}).touch()\n"
    (tmp_path / "path" / "planted.py").write_text(code)
    monkeypatch.syspath_prepend(tmp_path / "path")
    return marker


def keras_file(folder: pathlib.Path, model: keras.Model) -> pathlib.Path:
    path = folder / "export" / "1" / KERAS_MODEL
    path.parent.mkdir(parents=True)
    model.save(path)
    return path


def test_a_lambda_in_a_keras_file_is_refused(tmp_path):
    marker = tmp_path / "marker"
    planted = keras.layers.Lambda(lambda x, path=str(marker): (open(path, "w"), x)[1])  # noqa: SIM115
    model = keras.Sequential([keras.Input((1,)), planted])
    keras_file(tmp_path, model)
    marker.unlink()
    # A program may have allowed it for files of its own.
    with SafeModeScope(safe_mode=False), pytest.raises(ValueError, match=r"Expected .*[Ll]ambda"):
        load_initialization(tmp_path / "export")
    assert not marker.exists()


def test_a_module_that_a_keras_file_names_is_not_imported(tmp_path, planted_module):
    path = keras_file(tmp_path, keras.Sequential([keras.Input((1,)), keras.layers.Dense(1)]))
    with zipfile.ZipFile(path) as archive:
        files = {name: archive.read(name) for name in archive.namelist()}
    config = json.loads(files["config.json"])
    for layer in config["config"]["layers"]:
        layer.update(module="planted", class_name="Dense", registered_name="Dense")
    files["config.json"] = json.dumps(config).encode()
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    with pytest.raises(ValueError, match="Expected"):
        load_initialization(tmp_path / "export")
    assert not planted_module.exists()


def test_a_module_that_a_data_set_names_is_not_imported(tmp_path, planted_module):
    arguments = small_data.cifar100(tmp_path / "data")
    (features,) = (tmp_path / "data").rglob("features.json")
    text = features.read_text().replace(
        "tensorflow_datasets.core.features.image_feature", "planted"
    )
    assert "planted" in text
    features.write_text(text)
    with pytest.raises(
        ValueError, match=r"got 'planted\.Image' in .*features\.json, code from els"
    ):
        tasks.REGISTRY["tfds"](name="cifar100", **arguments)
    (tmp_path / "data" / "cifar100").rename(tmp_path / "data" / "nameless")
    with pytest.raises(ValueError, match="code from elsewhere, which is not run"):
        tasks.REGISTRY["tfds"](name="nameless", **arguments)
    assert not planted_module.exists()


def test_nothing_in_the_package_could_run_what_it_reads():
    """By name: pickle and its like, eval and exec, arrays and YAML that can hold objects."""
    refused = {
        "pickle",
        "marshal",
        "shelve",
        "dill",
        "joblib",
        "yaml",
        "eval",
        "exec",
        "__import__",
    }
    found = []
    for path in sorted((project.ROOT / "amaml_tf").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = {
                alias.name.split(".")[0]
                for alias in getattr(node, "names", ())
                if isinstance(node, (ast.Import, ast.ImportFrom))
            }
            if isinstance(node, ast.Call):
                names.add(ast.unparse(node.func))
                loads = ast.unparse(node.func) in ("np.load", "numpy.load")
                if loads and "allow_pickle=True" in ast.unparse(node):
                    names.add("pickle")
            found += [f"{path.name}: {name}" for name in names & refused]
    assert not found


@pytest.mark.long
def test_nothing_is_written_outside_of_the_workdir(tmp_path):
    for name in ("home", "tmp", "cwd"):
        (tmp_path / name).mkdir()
    environment = os.environ | {
        "HOME": str(tmp_path / "home"),
        "TMPDIR": str(tmp_path / "tmp"),
        "PYTHONPATH": str(project.ROOT),
        "PYTHONDONTWRITEBYTECODE": "1",
    }
    flags = ["--hidden_units=2", "--num_meta_steps=1", "--num_eval_episodes=2", "--jit_compile=off"]
    subprocess.run(
        [sys.executable, "-m", "amaml_tf.train", *flags, f"--workdir={tmp_path / 'run'}"],
        cwd=tmp_path / "cwd",
        env=environment,
        check=True,
        capture_output=True,
    )
    written = {
        each.relative_to(tmp_path).parts[:2] for each in tmp_path.rglob("*") if each.is_file()
    }
    outside = {parts for parts in written if parts[0] != "run"}
    # Settings of Keras, and what matplotlib knows of fonts.
    assert outside <= {("home", ".keras"), ("home", ".config"), ("home", ".cache")}
