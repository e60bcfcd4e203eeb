"""ONNX files: another runtime predicts what the signatures of the export predict."""

import sys

import keras
import numpy as np
import pytest
import tensorflow as tf
from sessions import Session

import amaml_tf as amaml
from amaml_tf.saved_model import load_initialization, save_initialization
from amaml_tf.units import Affine, Lookup, Pixels, Units

RNG = np.random.default_rng(0)


def learner_of(model, loss="mse"):
    learner = amaml.MetaLearner(model, amaml.algorithms.ANIL(0.5, 2))
    learner.compile(loss=loss, jit_compile="off")
    return learner


def onnx_session(path, name):
    runtime = pytest.importorskip(
        "onnxruntime", reason="onnxruntime is not there: pip install '.[test]'"
    )
    file = path / "assets.extra" / f"{name}.onnx"
    return runtime.InferenceSession(str(file), providers=["CPUExecutionProvider"])


def test_predicts_as_the_export_does(tmp_path):
    """E2: with the statistics of training, and after adaptation with those of the support set."""
    pytest.importorskip("tf2onnx", reason="tf2onnx is not there: pip install '.[onnx]'")
    model = amaml.models.convolutional_network((16, 16, 1), 3, filters=4, num_blocks=2, seed=0)
    learner = learner_of(model, keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    x = RNG.integers(0, 256, (7, 16, 16, 1)).astype("uint8")
    y = np.array([0, 0, 1, 1, 2, 2], "int32")
    scaled = (255 - x[np.newaxis, :6].astype("float32")) / 255
    path = save_initialization(
        learner,
        tmp_path,
        units=Units(Pixels(inverted=True)),
        statistics_from=[((scaled, y[np.newaxis]), (scaled, y[np.newaxis]))],
        onnx=True,
        check=False,
    )
    session, onnx = Session(path), onnx_session(path, "serving_default")
    (found,) = onnx.run(["predictions"], {"x": x})
    np.testing.assert_allclose(found, session("serving_default", x=x)["predictions"], atol=1e-5)
    np.testing.assert_allclose(found, load_initialization(path)(x), atol=1e-5)
    onnx = onnx_session(path, "predict_with")
    adapted = session("adapt", support_x=x[:6], support_y=y)
    adapted = {each.name: adapted[each.name] for each in onnx.get_inputs() if each.name != "x"}
    (later,) = onnx.run(["predictions"], {"x": x, **adapted})
    expected = session("predict_with", x=x, **adapted)["predictions"]
    np.testing.assert_allclose(later, expected, rtol=1e-4, atol=1e-5)
    assert abs(later - found).max() > 0.01
    (one,) = onnx.run(["predictions"], {"x": x[:1], **adapted})  # any number of rows
    np.testing.assert_allclose(one, later[:1], rtol=1e-4, atol=1e-5)


def test_what_cannot_be_converted_is_refused(tmp_path, monkeypatch):
    model = amaml.models.multilayer_perceptron((2,), 1, (4,), seed=0)
    features = ((0.0, 1.0), (1.0, 0.0))
    units = Units(Lookup((3, 5), features), Affine(0.0, 1.0))
    with pytest.raises(ValueError, match="identifiers of items; export the features"):
        save_initialization(learner_of(model), tmp_path, units=units, onnx=True)
    monkeypatch.setitem(sys.modules, "tf2onnx", None)
    with pytest.raises(ValueError, match=r"pip install amaml-tf\[onnx\]"):
        save_initialization(learner_of(model), tmp_path, onnx=True)
    assert not list(tmp_path.iterdir())


def test_an_operation_that_onnx_lacks_is_named(tmp_path):
    pytest.importorskip("tf2onnx", reason="tf2onnx is not there: pip install '.[onnx]'")
    own = keras.layers.Lambda(tf.math.erfinv, name="own")
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(2), own, keras.layers.Dense(1)])
    with pytest.raises(ValueError, match=r"operations that ONNX has.*Erfinv"):
        save_initialization(learner_of(model), tmp_path, onnx=True)
    assert not list(tmp_path.iterdir())
