"""The app of export/ runs as it is, where neither this library nor TensorFlow Probability is."""

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
        timeout=120,
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


@pytest.mark.long
def test_images_with_a_new_head(tmp_path):
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
    arguments = [f"--initialization={tmp_path / 'network.keras'}", f"--data={tmp_path / 'images'}"]
    arguments += [f"--output={tmp_path / 'tuned'}", "--learning_rate=0.02", "--epochs=30"]
    done = run(tmp_path, *arguments)
    assert "5 outputs, got 2; pass --new_head" in done.stderr
    done = run(tmp_path, *arguments, "--new_head")
    assert done.returncode == 0, done.stderr[-2000:]
    results = json.loads((tmp_path / "tuned" / "metrics.json").read_text())
    assert results["initialization"]["accuracy"] == 1.0
