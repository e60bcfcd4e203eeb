"""The app of export/ runs as it is, where neither this library nor TensorFlow Probability is."""

import ast
import importlib
import json
import os
import subprocess
import sys

import keras
import numpy as np
import pytest
from serving_data import EXPORT, examples, write_csv

HIDE = """
import sys
sys.modules["amaml_tf"] = sys.modules["tensorflow_probability"] = None
"""


def run(tmp_path, *arguments):
    (tmp_path / "hidden").mkdir(exist_ok=True)
    (tmp_path / "hidden" / "sitecustomize.py").write_text(HIDE)
    environment = {
        **os.environ,
        "PYTHONPATH": str(tmp_path / "hidden"),
        "TF_CPP_MIN_LOG_LEVEL": "2",
    }
    return subprocess.run(
        [sys.executable, EXPORT / "finetune_keras_app.py", *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
        env=environment,
    )


def test_a_csv_file(served, tmp_path):
    data = write_csv(tmp_path / "data.csv", *examples(40))
    test = write_csv(tmp_path / "test.csv", *examples(20, seed=5))
    out = tmp_path / "tuned"
    options = [
        f"--data={data}",
        f"--output={out}",
        "--epochs=60",
        "--learning_rate=0.02",
        "--compare_random",
        f"--test={test}",
    ]
    done = run(tmp_path, f"--initialization={served[1]}", *options)
    assert done.returncode == 0, done.stderr[-2000:]
    results = json.loads((out / "metrics.json").read_text())
    assert set(results) == {"initialization", "random weights"}
    x, y = examples(20, seed=5)
    before = float(np.mean((served[0].model.predict(x, verbose=0) - y) ** 2))
    assert results["initialization"]["loss"] < 0.7 * before
    model = keras.models.load_model(out / "model.keras")
    rmse = float(np.sqrt(np.mean((model.predict(x, verbose=0) - y) ** 2)))
    assert rmse == pytest.approx(results["initialization"]["rmse"], rel=1e-4)
    assert (out / "curves.png").stat().st_size > 5000
    assert "val_loss" in (out / "history.csv").read_text()


def test_it_imports_keras_and_tensorflow_only():
    tree = ast.parse((EXPORT / "finetune_keras_app.py").read_text())
    names = {
        name.name if isinstance(node, ast.Import) else str(node.module)
        for node in ast.walk(tree)
        if isinstance(node, ast.Import | ast.ImportFrom)
        for name in node.names
    }
    assert names - sys.stdlib_module_names == {"keras", "tensorflow", "matplotlib.figure"}


# -- in this process, which is faster --------------------------------------------------------------


@pytest.fixture
def app(monkeypatch, tmp_path):
    """Runs the app; returns its metrics, or the sentence that it exits with."""
    monkeypatch.syspath_prepend(str(EXPORT))
    module = importlib.import_module("finetune_keras_app")

    def run(initialization, data, *options):
        out = tmp_path / "tuned"
        arguments = [f"--initialization={initialization}", f"--data={data}", f"--output={out}"]
        monkeypatch.setattr(sys, "argv", ["app.py", *arguments, *options])
        try:
            module.main()
        except SystemExit as error:
            return str(error)
        return json.loads((out / "metrics.json").read_text())["initialization"]

    return run


@pytest.fixture
def network(tmp_path):
    """The path of a classifier of two numbers."""
    keras.utils.set_random_seed(0)
    layers = [keras.Input((2,)), keras.layers.Dense(8, "tanh"), keras.layers.Dense(2, name="head")]
    keras.Sequential(layers).save(tmp_path / "network.keras")
    return tmp_path / "network.keras"


def write_classes(path, names):
    rows = "".join(f"{n / 10},{n % 3},{names[n % len(names)]}\n" for n in range(30))
    path.write_text(f"a,b,colour\n{rows}")
    return path


def test_test_data_has_the_labels_of_the_training_data(app, network, tmp_path):
    data = write_classes(tmp_path / "data.csv", ["blue", "red"])
    only_red = write_classes(tmp_path / "test.csv", ["red"])
    options = ["--classes", "--epochs=1", "--learning_rate=0", f"--test={only_red}"]
    found = app(network, data, *options)
    x = np.array([[n / 10, n % 3] for n in range(30)])
    labels = keras.models.load_model(network).predict(x, verbose=0).argmax(axis=-1)
    assert found["accuracy"] == pytest.approx(np.mean(labels == 1))  # red is label 1 here too
    assert found["before"]["accuracy"] == found["accuracy"]
    assert json.loads((tmp_path / "tuned" / "classes.json").read_text()) == ["blue", "red"]
    green = write_classes(tmp_path / "green.csv", ["green"])
    told = app(network, data, *options[:-1], f"--test={green}")
    assert "Expected the classes ['blue', 'red'] in" in told


def test_columns_are_found_by_their_names(app, network, tmp_path):
    """Of test data in another order too, with a byte order mark and a column more."""
    data = write_classes(tmp_path / "data.csv", ["10", "9"])
    rows = [line.split(",") for line in data.read_text().splitlines()]
    text = "".join(f"{colour},7,{b},{a}\n" for a, b, colour in rows).replace(",7,", ",id,", 1)
    (tmp_path / "test.csv").write_text(text, encoding="utf-8-sig")
    options = ["--classes", "--epochs=0", "--validation=0"]
    expected = app(network, data, *options)
    found = app(network, data, *options, f"--test={tmp_path / 'test.csv'}")
    assert found["loss"] == pytest.approx(expected["loss"])
    assert json.loads((tmp_path / "tuned" / "classes.json").read_text()) == ["9", "10"]
    (tmp_path / "test.csv").write_text("a,c,colour\n1,2,9\n")
    told = app(network, data, *options, f"--test={tmp_path / 'test.csv'}")
    assert "Expected a column 'b' in" in told


def test_freeze_trains_the_head_only(app, network, tmp_path):
    data = write_classes(tmp_path / "data.csv", ["blue", "red"])
    app(network, data, "--classes", "--epochs=3", "--learning_rate=0.1", "--freeze")
    old, new = (keras.models.load_model(p) for p in (network, tmp_path / "tuned" / "model.keras"))
    hidden, head = (
        np.abs(a.get_weights()[0] - b.get_weights()[0]).max()
        for a, b in zip(old.layers, new.layers, strict=True)
    )
    assert hidden == 0
    assert head > 0.01


@pytest.mark.parametrize(
    ("content", "options", "told"),
    [
        ("a,b,y\n", [], "Expected a CSV file with a header and examples"),
        ("a,y\n1,2\n", [], "Expected inputs of shape (2,) in"),
        ("a,b,y\n1,2,3\n1,red,3\n", [], "Expected float in column 'b' of"),
        ("a,b,y\n1,2,nan\n", [], "got 'nan' in line 2"),
        ("a,b,y\n1,2\n", [], "got None in line 2"),
        ("a,b,y\n1,2,3\n", ["--target=z"], "Expected a column 'z' in"),
        ("a,b,y\n1,2,3\n", [], "Expected data for the model's 2 outputs, got 1; pass --new_head"),
        ("a,b,y\n1,2,0\n1,2,1\n", ["--classes", "--validation=1"], "Expected examples to train"),
        ("a,b,y\n1,2,0\n1,2,1\n", ["--classes", "--validation=-1"], "Expected examples to train"),
        ("a,b,y\n1,2,0\n1,2,0\n", ["--classes"], "Expected two classes or more"),
        ("a,b,y\n1,2,0\n1,2, \n", ["--classes"], "Expected str in column 'y' of"),
        ("a,b,y\n1,1e39,3\n", [], "got '1e39' in line 2"),
        ("a,b,y\n1,2,3,4\n", [], "Expected 3 cells in line 2 of"),
        ('a,b,y\n1,2,"3\n4,5,6\n', [], "Expected a CSV file in UTF-8, got"),
        ("a,a,y\n1,2,3\n", [], "Expected columns of different names in"),
        ("a,\xe4,y\n1,2,3\n", [], "Expected a CSV file in UTF-8, got"),
        ("", [], "Expected a CSV file with a header and examples"),
    ],
)
def test_mistakes_are_told(app, network, tmp_path, content, options, told):
    (tmp_path / "data.csv").write_text(content, encoding="latin-1")
    assert told in app(network, tmp_path / "data.csv", *options)


def test_folders_without_images_are_told(app, network, tmp_path):
    assert "Expected an exported initialization" in app(tmp_path, tmp_path)
    assert "Expected a CSV file for inputs of shape" in app(network, tmp_path)
    assert "which is not there" in app(network, tmp_path / "none.csv")


def test_images_with_a_new_head(app, tmp_path):
    image_module = pytest.importorskip("PIL.Image", reason="Pillow is not there")
    keras.utils.set_random_seed(0)
    inputs = keras.Input((8, 8, 1), dtype="uint8")
    hidden = keras.layers.Flatten()(keras.layers.Rescaling(1 / 255)(inputs))
    outputs = keras.layers.Dense(5, name="head")(keras.layers.Dense(8, "tanh")(hidden))
    keras.Model(inputs, outputs).save(tmp_path / "network.keras")
    random = np.random.default_rng(0)
    for label in range(2):
        (tmp_path / "images" / str(label)).mkdir(parents=True)
        for n in range(10):
            pixels = (random.integers(0, 100, (8, 8)) + 150 * label).astype("uint8")
            image_module.fromarray(pixels).save(tmp_path / "images" / str(label) / f"{n}.png")
    given = tmp_path / "network.keras", tmp_path / "images"
    options = ["--learning_rate=0.05", "--epochs=10"]
    assert "5 outputs, got 2; pass --new_head" in app(*given, *options)
    assert app(*given, *options, "--new_head")["accuracy"] == 1.0
    # One image is enough for a class; a folder of none is no class, a damaged one no image.
    image_module.new("RGBA", (9, 7)).save(tmp_path / "images" / "1" / "large.png")
    (tmp_path / "images" / "2").mkdir()
    (tmp_path / "images" / "2" / "notes.txt").touch()
    told = app(*given, *options, "--new_head")
    assert "Expected .png, .jpg, .bmp or .gif images in" in told
    assert told.endswith("for 2, got none.")
    image_module.new("L", (8, 8)).save(tmp_path / "images" / "2" / "only.png")
    app(*given, "--epochs=1", "--new_head")
    content = (tmp_path / "images" / "2" / "only.png").read_bytes()
    (tmp_path / "images" / "2" / "only.png").write_bytes(content[:40])
    assert f"got {tmp_path / 'images' / '2' / 'only.png'}, which is" in app(*given, "--new_head")
