"""What cannot be exported is refused in a sentence; damaged exports are told."""

import json
import subprocess
import sys

import keras
import numpy as np
import pytest
import tensorflow as tf
from sessions import Session

import amaml_tf as amaml
from amaml_tf.errors import UsageError
from amaml_tf.saved_model import (
    Bounds,
    describe,
    load_initialization,
    read_contract,
    save_initialization,
    versions,
)
from amaml_tf.saved_model.contract import CONTRACT
from amaml_tf.saved_model.warmup import WARMUP
from amaml_tf.units import Affine, Lookup, Pixels, Units

CROSSENTROPY = keras.losses.SparseCategoricalCrossentropy(from_logits=True)


def learner_of(model, loss="mse"):
    learner = amaml.MetaLearner(model, amaml.algorithms.MAML(0.05, 3))
    learner.compile(loss=loss, jit_compile="off")
    return learner


def network(outputs=1):
    return amaml.models.multilayer_perceptron((2,), outputs, (4,), seed=0)


def two_headed(inputs=("left", "right"), outputs=("level", "kind")):
    """A model of two inputs and two outputs, and its losses."""
    given = [keras.Input((1,), name=name) for name in inputs]
    hidden = keras.layers.Concatenate()(given)
    heads = [
        keras.layers.Dense(size, name=n)(hidden) for size, n in zip((1, 3), outputs, strict=True)
    ]
    return learner_of(keras.Model(given, heads), ["mse", CROSSENTROPY])


# -- what is refused ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "names",
    [("a", "a", "b"), ("a", "", "b"), ("a", "b\n", "c"), (0, 1, 2), "abc", ("a", "b")],
    ids=str,
)
def test_names_of_classes(tmp_path, names):
    with pytest.raises(UsageError, match="class_names"):
        save_initialization(learner_of(network(3), CROSSENTROPY), tmp_path, class_names=names)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("version", [0, -1, 2.5, True, "3", 2**63])
def test_numbers_of_versions(tmp_path, version):
    """A server would never see a folder 2.5, and counts in int64."""
    with pytest.raises(UsageError, match="version to be a whole number from 1 on"):
        save_initialization(learner_of(network()), tmp_path, version)
    assert list(tmp_path.iterdir()) == []


def test_no_version_is_above_the_largest(tmp_path):
    (tmp_path / str(2**63 - 1)).mkdir()
    with versions.unfinished(tmp_path) as folder, pytest.raises(UsageError, match="whole number"):
        versions.publish(folder, tmp_path, None)


@pytest.mark.parametrize("value", [0, 1.5, True, "1", float("nan"), 10**9])
def test_other_counts(tmp_path, value):
    if value != 10**9:
        with pytest.raises(UsageError, match="keep_versions to be a whole number from 1 on"):
            save_initialization(learner_of(network()), tmp_path, keep_versions=value)
    with pytest.raises(UsageError, match="max_tasks to be a whole number from 1 to 100000000"):
        Bounds(max_tasks=value)


def test_a_full_disk_is_no_lack_of_memory(tmp_path, monkeypatch):
    def full(*_, **__):
        raise tf.errors.ResourceExhaustedError(None, None, "a/saved_model.pb; No space left")

    monkeypatch.setattr(tf.saved_model, "save", full)
    with pytest.raises(UsageError, match="can be written, got No space left; make room there, or"):
        save_initialization(learner_of(network()), tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["[x]", "a]b", "back\\slash"])
def test_folders_in_which_tensorflow_finds_nothing(tmp_path, name):
    with pytest.raises(UsageError, match="Expected the path of an export without"):
        save_initialization(learner_of(network()), tmp_path / name / "model")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("bad", [np.nan, -np.inf])
def test_weights_that_are_not_finite(tmp_path, bad):
    model = network()
    model.layers[-1].bias.assign([bad])
    with pytest.raises(UsageError, match=r"finite weights.*/bias; export an earlier checkpoint"):
        save_initialization(learner_of(model), tmp_path)


@pytest.mark.parametrize(
    ("kind", "names"),
    [
        ("inputs", ("a-b", "a.b")),
        ("inputs", ("日", "本")),
        ("inputs", ("a", "A")),
        ("outputs", ("a-b", "a.b")),
    ],
)
def test_two_things_of_one_name(tmp_path, kind, names):
    """E9: an input must not take the place of another."""
    with pytest.raises(UsageError, match=f"Expected {kind} whose names differ"):
        save_initialization(two_headed(**{kind: names}), tmp_path)


def test_specs_of_targets(tmp_path):
    with pytest.raises(UsageError, match="a model with one output, got"):
        save_initialization(two_headed(), tmp_path, target_spec=tf.TensorSpec([None, 1]))
    words = tf.TensorSpec([None, 1], tf.string)
    with pytest.raises(UsageError, match="targets that the loss takes"):
        save_initialization(learner_of(network()), tmp_path, target_spec=words)


# -- what is unusual, and right -----------------------------------------------------------------


@pytest.mark.long
def test_names_in_any_script(tmp_path):
    """Also: a dict of one input and one output, and --keep_versions=1."""
    given = keras.Input((2,), name="Punkte")
    model = keras.Model({"Punkte": given}, {"Klasse": keras.layers.Dense(3)(given)})
    learner = learner_of(model, {"Klasse": CROSSENTROPY})
    folder = tmp_path / "mit Abstand {ä}*" / "猫"
    (folder / "1").mkdir(parents=True)
    x, labels = np.eye(3, 2, dtype="float32"), np.arange(3, dtype="int32")
    path = save_initialization(learner, folder, keep_versions=1)
    assert [each.name for each in folder.iterdir()] == [path.name] == ["2"]
    answer = Session(path)("adapt_and_predict", support_x=x, support_y=labels, query_x=x)
    expected = learner.adapt(({"Punkte": x}, {"Klasse": labels}))({"Punkte": x})["Klasse"]
    np.testing.assert_allclose(answer["predictions"], expected, atol=1e-5)
    assert load_initialization(folder)(x)["Klasse"].shape == (3, 3)
    learner = learner_of(network(3), CROSSENTROPY)
    names = ("Straße", "a | b", "😀")
    path = save_initialization(learner, folder, class_names=names, check=False)
    answer = Session(path)("adapt_and_predict", support_x=x, support_y=labels, query_x=x)
    assert {each.decode() for each in answer["classes"]} <= set(names)
    assert "Straße, a | b, 😀" in describe(folder)


def test_a_bound_that_refuses_even_the_example(tmp_path):
    """A server would not load a version whose warm-up is refused."""
    model = network()
    flow = amaml.GradientFlow(final_time=1.0)
    learner = amaml.MetaLearner(model, amaml.algorithms.AdjointMAML(flow))
    learner.compile(loss="mse", jit_compile="off")
    path = save_initialization(learner, tmp_path, bounds=Bounds(max_gradient_evaluations=1))
    records = [r.numpy() for r in tf.data.TFRecordDataset(str(path / WARMUP))]
    assert len(records) == 2
    assert all(b"support_x" not in record for record in records)
    x = np.eye(4, 2, dtype="float32")
    with pytest.raises(tf.errors.InvalidArgumentError, match="more than 1 gradient evaluations"):
        Session(path)("adapt", support_x=x, support_y=x[:, :1])


def test_classes_of_several_outputs(tmp_path):
    """An output for each class, with smoothed one-hot targets, beside one for two classes."""
    x = keras.Input((2,))
    kind = keras.layers.Dense(3, name="kind")(x)
    fine = keras.layers.Dense(1, "sigmoid", name="is-fine")(x)
    losses = [
        keras.losses.CategoricalCrossentropy(True, label_smoothing=0.1),
        "binary_crossentropy",
    ]
    learner = learner_of(keras.Model(x, [kind, fine]), losses)
    names = {"kind": ("red", "green", "blue"), "is-fine": ("no", "yes")}
    session = Session(save_initialization(learner, tmp_path, class_names=names))
    x, labels = np.eye(4, 2, dtype="float32"), np.array([0, 1, 2, 2])
    y = [np.eye(3, dtype="float32")[labels], np.array([[0], [1], [1], [0.5]], "float32")]
    request = {"support_x": x, "support_y_kind": y[0], "support_y_is_fine": y[1], "query_x": x}
    answer = session("adapt_and_predict", **request)
    logits, second = learner.adapt((x, y))(x)
    found = {"kind": tf.nn.softmax(logits), "is_fine": np.concatenate([1 - second, second], axis=1)}
    weight = np.ones(4, "float32")
    tasks = {name: np.stack([v, v]) for name, v in {**request, "support_weight": weight}.items()}
    tasks["support_y_is_fine"][1] += 1
    batch = session("adapt_and_predict_batch", **tasks)
    for place, (name, probabilities) in enumerate(found.items()):
        np.testing.assert_allclose(answer[f"probabilities_{name}"], probabilities, atol=1e-5)
        expected = [
            list(names.values())[place][best].encode() for best in np.argmax(probabilities, axis=1)
        ]
        assert answer[f"classes_{name}"].tolist() == expected
        np.testing.assert_allclose(batch[f"probabilities_{name}"][0], probabilities, atol=1e-5)
        assert batch[f"classes_{name}"].tolist() == [expected, [b""] * 4]
    assert b"support_y_is_fine to be probabilities from 0 to 1" in batch["error"][1]
    assert read_contract(tmp_path)["class_names"]["predictions_kind"] == ["red", "green", "blue"]
    assert "Classes of `predictions_is_fine`, in the order of the labels: no, yes." in describe(
        tmp_path
    )


PLAIN_KERAS = """
import sys
sys.modules["amaml_tf"] = None  # to import it is an error
import keras, numpy as np
for place in sys.argv[1:]:
    model = keras.models.load_model(f"{place}.keras", compile=False)
    x = np.load(f"{place}.npy")
    if x.dtype.kind == "U":
        x = keras.ops.convert_to_tensor(x)
    np.testing.assert_allclose(model(x), np.load(f"{place}_y.npy"), atol=1e-5)
"""


def test_keras_alone_loads_every_kind(tmp_path):
    """E12: raw units are in the file, in layers of Keras, and so are the networks."""
    flat = keras.Sequential([keras.Input((2, 2, 1)), keras.layers.Flatten(), keras.layers.Dense(3)])
    features = ((0.5, 1.0), (2.0, -1.0))
    images = np.random.default_rng(0).integers(0, 256, (3, 2, 2, 1)).astype("uint8")
    kinds = {
        "numbers": (Units(Affine(1.0, 2.0), Affine(3.0, 0.5)), network(), np.eye(3, 2)),
        "pixels": (Units(Pixels(inverted=True)), flat, images),
        "words": (Units(Lookup(("ä", "b"), features)), network(), np.array(["ä", "b", "c"])),
        "items": (Units(Lookup((7, 2**40), features)), network(), np.array([7, 2**40, 1])),
    }
    for name, (units, model, x) in kinds.items():
        raw = units.in_raw_units(model)
        raw.save(tmp_path / f"{name}.keras")
        np.save(tmp_path / f"{name}.npy", x)
        np.save(tmp_path / f"{name}_y.npy", raw(tf.constant(x)))
    places = [str(tmp_path / name) for name in kinds]
    subprocess.run([sys.executable, "-c", PLAIN_KERAS, *places], check=True)


# -- damaged and foreign folders ----------------------------------------------------------------


@pytest.fixture
def folder(tmp_path):
    """A folder that looks like an export."""
    (tmp_path / "1" / versions.EXTRA).mkdir(parents=True)
    (tmp_path / "1" / versions.SAVED_MODEL).touch()
    return tmp_path


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "Expecting value"),
        (b'{"format": 1, "task', "Unterminated string"),
        (b"[1]", "of format None"),
        (b'{"format": 1, "task": "alpine"}', "a part of one"),
        (json.dumps({"format": 99}).encode(), "of format 99"),
        (b"\xff\xfe\x00", "bytes that are not"),
        (b"[" * 100_000, "too many brackets"),
    ],
)
def test_damaged_contracts(folder, content, words):
    """E16: what cannot be said of an export is not guessed."""
    (folder / "1" / CONTRACT).write_bytes(content)
    for read in (read_contract, describe):
        with pytest.raises(UsageError, match=f"Expected the contract of an export.*{words}"):
            read(folder)


@pytest.mark.parametrize("damage", ["empty", "text", "cut", "flipped"])
def test_damaged_keras_files(folder, damage):
    path = folder / "1" / versions.KERAS_MODEL
    network().save(path)
    content = path.read_bytes()
    middle = len(content) // 2
    flipped = bytes(255 - byte for byte in content[middle : middle + 60])
    damaged = {
        "empty": b"",
        "text": b"hello",
        "cut": content[:middle],
        "flipped": content[:middle] + flipped + content[middle + 60 :],
    }
    path.write_bytes(damaged[damage])
    with pytest.raises(UsageError, match="Expected a whole Keras file, got a damaged one"):
        load_initialization(folder)


def test_files_and_foreign_models(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(FileNotFoundError, match="Expected an exported initialization"):
        describe(tmp_path / "file")
    tf.saved_model.save(tf.Module(), str(tmp_path / "foreign" / "1"))
    with pytest.raises(FileNotFoundError, match="an export with a contract"):
        describe(tmp_path / "foreign")
