"""Requests that callers send by mistake, to an export of several inputs, outputs and dtypes."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from sessions import Session

import amaml_tf as amaml
from amaml_tf.saved_model import save_initialization

RNG = np.random.default_rng(0)
LEFT, RIGHT = RNG.normal(size=(5, 2)), RNG.normal(size=(5, 1))
LEVEL, KIND = np.sin(LEFT[:, :1]), np.array([0, 1, 2, 0, 1], "int32")
SUPPORT = {
    "support_x_left": LEFT,
    "support_x_right": RIGHT,
    "support_y_level": LEVEL,
    "support_y_kind": KIND,
}
QUERY = {"query_x_left": LEFT, "query_x_right": RIGHT}
WEIGHT = np.ones(5, "float32")
TIME = np.float64(0.15)


def learner_of(model, loss):
    learner = amaml.MetaLearner(model, amaml.algorithms.MAML(0.05, 3))
    learner.compile(loss=loss, jit_compile="off")
    return learner


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    """A learner in float64 with dicts of inputs and outputs, and a session on its export."""
    left, right = (
        keras.Input((size,), name=name, dtype="float64")
        for size, name in ((2, "left"), (1, "right"))
    )
    hidden = keras.layers.Concatenate(dtype="float64")([left, right])
    level = keras.layers.Dense(1, name="level", dtype="float64")(hidden)
    kind = keras.layers.Dense(3, name="kind", dtype="float64")(hidden)
    model = keras.Model({"right": right, "left": left}, {"level": level, "kind": kind})
    crossentropy = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    learner = learner_of(model, {"level": "mse", "kind": crossentropy})
    folder = tmp_path_factory.mktemp("exports")
    return learner, Session(save_initialization(learner, folder))


@pytest.fixture(scope="module")
def session(served):
    return served[1]


def refused(session, signature, words, **inputs):
    with pytest.raises(tf.errors.InvalidArgumentError) as error:
        session(signature, **inputs)
    assert words in error.value.message


def test_dicts_of_inputs_and_outputs(served):
    learner, session = served
    answer = session("adapt_and_predict", **SUPPORT, **QUERY)
    x, y = {"left": LEFT, "right": RIGHT}, {"level": LEVEL, "kind": KIND}
    expected = learner.adapt((x, y))(x)  # Keras casts x to float32
    for name in ("level", "kind"):
        np.testing.assert_allclose(
            answer[f"predictions_{name}"], expected[name], rtol=1e-5, atol=1e-6
        )
    one = {name: values[3:4] for name, values in QUERY.items()}
    alone = session("adapt_and_predict", **SUPPORT, **one)
    np.testing.assert_allclose(alone["predictions_kind"], expected["kind"][3:4], rtol=1e-5)
    none = {name: values[:0] for name, values in QUERY.items()}
    answer = session("adapt_and_predict", **SUPPORT, **none)
    assert answer["predictions_level"].shape == (0, 1)
    assert answer["predictions_kind"].shape == (0, 3)


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("support_y_kind", KIND[:, np.newaxis], "of shape [rows], got shape [5 1]"),
        ("support_y_kind", np.int32(1), "of shape [rows], got shape []"),
        ("support_y_kind", KIND + 1, "to be labels from 0 to 2, got 1 to 3"),
        ("support_y_kind", KIND.astype("int64"), "actual int64 vs. expect int32"),
        ("support_y_level", LEVEL[..., np.newaxis], "of shape [rows, 1], got shape [5 1 1]"),
        ("support_y_level", LEVEL * np.nan, "of finite numbers, got 5"),
        ("support_y_level", LEVEL.astype("float32"), "actual float vs. expect double"),
        ("support_x_right", RIGHT[:4], "with as many rows as support_x_left, 5, got 4"),
        ("support_x_right", np.float64(1), "of shape [rows, 1], got shape []"),
        ("support_x_left", LEFT * np.inf, "of finite numbers, got 10"),
        ("query_x_right", RIGHT[:4], "with as many rows as query_x_left, 5, got 4"),
        ("query_x_left", LEFT[..., np.newaxis], "of shape [rows, 2], got shape [5 2 1]"),
        ("query_x_right", RIGHT * np.nan, "of finite numbers, got 5"),
    ],
)
def test_any_input_can_be_wrong(session, name, value, words):
    """E5 and E6: the second input, the labels beside numbers, an axis too many."""
    inputs = {**SUPPORT, **QUERY, name: value}
    refused(session, "adapt_and_predict", words, **inputs)


def test_no_examples_at_all(session):
    """E6: whatever adapts refuses an empty support set, and no tasks."""
    words = "Expected support_x_left with at least 1 row, got 0"
    refused(session, "adapt", words, **{name: values[:0] for name, values in SUPPORT.items()})
    tasks = tasks_of(5)
    words = "Expected support_x_left with at least 1 task, got 0"
    refused(session, "adapt_and_predict_batch", words, **{n: v[:0] for n, v in tasks.items()})
    words = "Expected support_x_left with at least 1 row, got 0"
    refused(session, "adapt_and_predict_batch", words, **{n: v[:, :0] for n, v in tasks.items()})
    refused(session, "serving_default", "got shape []", x_left=np.float64(1), x_right=RIGHT)


@pytest.mark.parametrize(
    ("weight", "words"),
    [
        (WEIGHT[:, np.newaxis], "of shape [rows], got shape [5 1]"),
        (np.float32(1), "of shape [rows], got shape []"),
        (WEIGHT[:3], "with as many rows as support_x_left, 5, got 3"),
        (WEIGHT * np.nan, "of finite numbers of 0 or more"),
        (WEIGHT * np.inf, "of finite numbers of 0 or more"),
        (WEIGHT - np.eye(5, dtype="float32")[2] * 2, "of finite numbers of 0 or more"),
        (WEIGHT * 0, "above 0 for at least 1 row"),
        (WEIGHT * -0.0, "above 0 for at least 1 row"),
    ],
)
def test_weights(session, weight, words):
    inputs = {**SUPPORT, "support_weight": weight, "final_time": TIME}
    refused(session, "adapt_weighted", f"Expected support_weight {words}", **inputs)


@pytest.mark.parametrize("time", [0, -0.1, 0.16, 1e300, np.nan, np.inf, [0.1], []])
def test_times(session, time):
    """E3: a time without an end would hold a server, one of another rank confuse it."""
    inputs = {**SUPPORT, "support_weight": WEIGHT, "final_time": np.array(time, "float64")}
    words = "Expected final_time, one number above 0 and at most 0.15, got"
    refused(session, "adapt_weighted", words, **inputs)


def test_parameters_that_adapt_did_not_give(session):
    adapted = session("adapt", **SUPPORT)
    named = {name: adapted[name] for name in adapted if name.startswith("parameter_")}
    name = "parameter_01_bias"
    wrong = {**named, name: named[name] * np.nan}
    words = f"Expected {name} of finite numbers, got {wrong[name].size} that are NaN or infinite"
    refused(session, "predict_with", words, x_left=LEFT, x_right=RIGHT, **wrong)
    wrong[name] = np.float64(0)
    refused(session, "predict_with", name, x_left=LEFT, x_right=RIGHT, **wrong)


def tasks_of(rows):
    """Two equal tasks."""
    task = {**SUPPORT, "support_weight": WEIGHT, **QUERY}
    return {name: np.stack([values[:rows]] * 2) for name, values in task.items()}


def test_a_bad_label_is_the_fault_of_its_task(session):
    """E13: the other task of a joined request gets its answer."""
    tasks = tasks_of(5)
    tasks["support_y_kind"][1, 0] = 3
    answer = session("adapt_and_predict_batch", **tasks)
    alone = session("adapt_and_predict", **SUPPORT, **QUERY)
    for name in ("predictions_level", "predictions_kind"):
        np.testing.assert_allclose(answer[name][0], alone[name], rtol=1e-10)
        assert np.isnan(answer[name][1]).all()
    assert answer["error"][0] == b""
    assert b"labels from 0 to 2, got 0 to 3" in answer["error"][1]
    words = "Expected support_weight of shape [tasks, rows], got shape [2 5 1]"
    tasks["support_weight"] = tasks["support_weight"][..., np.newaxis]
    refused(session, "adapt_and_predict_batch", words, **tasks)


X = LEFT.astype("float32")


@pytest.mark.parametrize(
    ("outputs", "loss", "spec", "good", "words"),
    [
        (1, "binary_crossentropy", None, KIND[:, np.newaxis] / 2, "probabilities from 0 to 1"),
        pytest.param(
            *(3, keras.losses.CategoricalCrossentropy(True), None, np.eye(3)[KIND], "from 0 to 1"),
            marks=pytest.mark.long,
        ),
        pytest.param(
            3,
            keras.losses.SparseCategoricalCrossentropy(True),
            tf.TensorSpec([None, 1], tf.int64),
            KIND[:, np.newaxis],
            "labels from 0 to 2",
            marks=pytest.mark.long,
        ),
    ],
)
def test_targets_that_no_class_has(tmp_path, outputs, loss, spec, good, words):
    """Keras computes crossentropies of any numbers."""
    if outputs == 1:
        model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1, "sigmoid")])
    else:
        model = amaml.models.multilayer_perceptron((2,), outputs, (4,), seed=0)
    learner = learner_of(model, loss)
    session = Session(save_initialization(learner, tmp_path, target_spec=spec))
    good = good.astype("float32" if spec is None else "int64")
    adapted = session("adapt_and_predict", support_x=X, support_y=good, query_x=X)
    np.testing.assert_allclose(adapted["predictions"], learner.adapt((X, good))(X), atol=1e-5)
    for wrong in (good + 3, good - 1):
        refused(session, "adapt", words, support_x=X, support_y=wrong)


LAYER = "words"


@pytest.fixture(scope="module")
def of_tokens(tmp_path_factory):
    """A session on the export of a model that reads seven tokens, flattened."""
    inputs = keras.Input((2, 2), dtype="int32")
    x = keras.layers.Embedding(7, 3, name=LAYER)(keras.layers.Flatten(dtype="int32")(inputs))
    model = keras.Model(inputs, keras.layers.Dense(1)(keras.layers.GlobalMaxPooling1D()(x)))
    return Session(save_initialization(learner_of(model, "mse"), tmp_path_factory.mktemp("tokens")))


@pytest.mark.parametrize("wrong", [-1, 7])
@pytest.mark.parametrize(
    "signature", ["serving_default", "adapt", "adapt_and_predict", "predict_with", "batch"]
)
def test_tokens_that_no_embedding_knows(of_tokens, signature, wrong):
    tokens = np.arange(8, dtype="int32").reshape(2, 2, 2) % 7
    bad, y = np.where(tokens == 3, wrong, tokens).astype("int32"), np.ones((2, 1), "float32")
    support = {"support_x": tokens, "support_y": y}
    words = (
        f"with whole tokens from 0 to 6 for layer {LAYER}, got {min(0, wrong)} to {max(6, wrong)}"
    )
    if signature == "batch":
        given = {**support, "support_weight": np.ones(2, "float32"), "query_x": bad}
        tasks = {name: np.stack([value, value]) for name, value in given.items()}
        tasks["query_x"][1] = tokens
        found = of_tokens("adapt_and_predict_batch", **tasks)
        assert words in found["error"][0].decode()
        assert found["error"][1] == b""
        return
    given = {
        "serving_default": {"x": bad},
        "adapt": {**support, "support_x": bad},
        "adapt_and_predict": {**support, "query_x": bad},
        "predict_with": {"x": bad},
    }[signature]
    if signature == "predict_with":
        adapted = of_tokens("adapt", **support)
        given |= {k: v for k, v in adapted.items() if k.startswith("parameter_")}
    refused(of_tokens, signature, words, **given)
