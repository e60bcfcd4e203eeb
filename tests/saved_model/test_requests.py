"""Requests to a server: good ones are answered, bad ones refused with a sentence, none holds it."""

import time

import keras
import numpy as np
import pytest
import tensorflow as tf
from sessions import Session

import amaml_tf as amaml
from amaml_tf.saved_model import Bounds, read_contract, save_initialization

RNG = np.random.default_rng(0)
X = RNG.normal(size=(5, 2)).astype("float32")
Y = np.sin(X[:, :1])
LABELS = np.array([0, 1, 2, 0, 1], "int32")
NAN = np.full_like(X, np.nan)


def learner_of(model, loss="mse", **options):
    flow = amaml.GradientFlow(**{"final_time": 1.0, **options})
    learner = amaml.MetaLearner(model, amaml.algorithms.AdjointMAML(flow))
    learner.compile(loss=loss, jit_compile="off")
    return learner


def network(outputs=1):
    return amaml.models.multilayer_perceptron((2,), outputs, (4,), seed=0)


@pytest.fixture(scope="module")
def regression(tmp_path_factory):
    """A learner of numbers, and a session on its export."""
    learner = learner_of(network())
    folder = tmp_path_factory.mktemp("exports") / "regression"
    bounds = Bounds(
        max_gradient_evaluations=500, max_support_rows=50, max_query_rows=60, max_tasks=4
    )
    return learner, Session(save_initialization(learner, folder, bounds=bounds))


@pytest.fixture(scope="module")
def classifier(tmp_path_factory):
    """A learner of three classes with names, and a session on its export."""
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    learner = learner_of(network(3), loss)
    folder = tmp_path_factory.mktemp("exports") / "classifier"
    names = ("red", "green", "blue")
    path = save_initialization(learner, folder, class_names=names, check=False)
    return learner, Session(path)


def refusal(session, signature, **inputs):
    """The words of the refusal of a request."""
    with pytest.raises(tf.errors.InvalidArgumentError) as error:
        session(signature, **inputs)
    return error.value.message


# -- good requests --------------------------------------------------------------------------------


def test_adapts_once_and_predicts_often(regression):
    """E11: what `adapt` gives can be used."""
    learner, session = regression
    adapted = session("adapt", support_x=X, support_y=Y)
    parameters = {n: v for n, v in adapted.items() if n.startswith("parameter_")}
    predicted = session("predict_with", x=X, **parameters)["predictions"]
    np.testing.assert_allclose(predicted, learner.adapt((X, Y))(X), atol=1e-5)
    at_once = session("adapt_and_predict", support_x=X, support_y=Y, query_x=X)
    np.testing.assert_allclose(predicted, at_once["predictions"], atol=1e-6)


def test_answers_tell_what_adaptation_did(regression):
    learner, session = regression
    answer = session("adapt_and_predict", support_x=X, support_y=Y, query_x=X)
    before = np.mean((learner.model(X) - Y) ** 2)
    after = np.mean((answer["predictions"] - Y) ** 2)
    np.testing.assert_allclose(answer["support_loss_before"], before, rtol=1e-5)
    np.testing.assert_allclose(answer["support_loss_after"], after, rtol=1e-5)
    assert 2 < answer["gradient_evaluations"] < 500
    assert after < before


def test_classes_have_names_and_probabilities(classifier):
    _, session = classifier
    answer = session("adapt_and_predict", support_x=X, support_y=LABELS, query_x=X)
    np.testing.assert_allclose(
        answer["probabilities"], tf.nn.softmax(answer["predictions"]), atol=1e-6
    )
    names = np.array([b"red", b"green", b"blue"])
    np.testing.assert_array_equal(
        answer["classes"], names[answer["predictions"].argmax(-1)].astype(object)
    )


def test_weights_and_time_of_a_request(regression):
    learner, session = regression
    weight = np.array([1, 2, 0, 0, 1], "float32")
    inputs = {"support_x": X, "support_y": Y, "support_weight": weight, "query_x": X}
    answer = session("adapt_and_predict_weighted", final_time=np.float32(1), **inputs)
    np.testing.assert_allclose(answer["predictions"], learner.adapt((X, Y, weight))(X), atol=1e-5)
    sooner = session("adapt_and_predict_weighted", final_time=np.float32(0.1), **inputs)
    assert sooner["support_loss_after"] > answer["support_loss_after"]
    words = refusal(session, "adapt_and_predict_weighted", final_time=np.float32(11), **inputs)
    assert "Expected final_time, one number above 0 and at most 10, got 11" in words
    inputs["support_weight"] = -weight
    words = refusal(session, "adapt_and_predict_weighted", final_time=np.float32(1), **inputs)
    assert "Expected support_weight" in words


# -- bad requests ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"support_x": X[:, :1]}, "Expected support_x of shape [rows, 2], got shape [5 1]"),
        ({"support_x": X[0]}, "Expected support_x of shape [rows, 2], got shape [2]"),
        ({"query_x": X[np.newaxis]}, "Expected query_x of shape [rows, 2], got shape [1 5 2]"),
        ({"support_y": Y[:, 0]}, "Expected support_y of shape [rows, 1], got shape [5]"),
        ({"support_y": Y[:1]}, "Expected support_y with as many rows as support_x, 5, got 1"),
        ({"support_x": X[:1]}, "Expected support_y with as many rows as support_x, 1, got 5"),
        ({"support_x": X[:0], "support_y": Y[:0]}, "Expected support_x with at least 1 row, got 0"),
        ({"support_x": NAN}, "Expected support_x of finite numbers, got 10"),
        ({"support_y": Y * np.inf}, "Expected support_y of finite numbers, got 5"),
        ({"query_x": NAN}, "Expected query_x of finite numbers, got 10"),
        (
            {"support_x": np.tile(X, (11, 1)), "support_y": np.tile(Y, (11, 1))},
            "Expected support_x with at most 50 rows, the bound of this export, got 55",
        ),
        (
            {"query_x": np.tile(X, (13, 1))},
            "Expected query_x with at most 60 rows, the bound of this export, got 65",
        ),
        ({"support_y": Y * 1e4}, "needs more than 500 gradient evaluations"),
        ({"support_y": Y * 1e30}, "that the model can adapt to"),
    ],
)
def test_refuses_in_a_sentence(regression, changed, words):
    """E3 to E6, and their twins."""
    _, session = regression
    start = time.monotonic()
    inputs = {"support_x": X, "support_y": Y, "query_x": X, **changed}
    assert words in refusal(session, "adapt_and_predict", **inputs)
    assert time.monotonic() - start < 60  # seconds alone; test machines are busy


def test_a_refusal_changes_nothing(regression):
    _, session = regression
    inputs = {"support_x": X, "support_y": Y}
    before = session("adapt", **inputs)
    refusal(session, "adapt", support_x=NAN, support_y=Y)
    for name, value in session("adapt", **inputs).items():
        np.testing.assert_array_equal(value, before[name])


@pytest.mark.parametrize("wrong", [-1, 3])
def test_refuses_labels_out_of_range(classifier, wrong):
    _, session = classifier
    labels = np.where(LABELS == 2, wrong, LABELS).astype("int32")
    words = refusal(session, "adapt_and_predict", support_x=X, support_y=labels, query_x=X)
    assert f"Expected support_y to be labels from 0 to 2, got {labels.min()}" in words


def test_refuses_parameters_of_another_shape(regression):
    _, session = regression
    parameters = {
        n: v for n, v in session("adapt", support_x=X, support_y=Y).items() if "parameter_" in n
    }
    parameters["parameter_00_kernel"] = np.ones((3, 4), "float32")
    words = refusal(session, "predict_with", x=X, **parameters)
    assert "parameter_00_kernel" in words
    assert "[2,4]" in words


@pytest.mark.parametrize("signature", ["serving_default", "predict_with"])
def test_refuses_inputs_that_are_not_finite(regression, signature):
    learner, session = regression
    names = session.signatures["predict_with"].inputs if signature == "predict_with" else ()
    values = zip(sorted(set(names) - {"x"}), learner.model.get_weights(), strict=False)
    assert "Expected x of finite numbers" in refusal(session, signature, x=NAN, **dict(values))


def test_a_solver_that_cannot_be_bounded_is_refused(tmp_path):
    """E4: BDF never returned on NaN."""
    learner = learner_of(network(), solver=amaml.solvers.BDF(), adjoint="continuous")
    with pytest.raises(ValueError, match=r"can be bounded, got BDF; export with another"):
        save_initialization(learner, tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.long
@pytest.mark.parametrize("name", ["dormand_prince", "heun", "runge_kutta4", "gradient_descent"])
def test_the_bound_holds_for_every_solver(tmp_path, name):
    factory = amaml.solvers.REGISTRY.find(name)
    fixed = name not in ("dormand_prince",)
    learner = learner_of(network(), solver=factory(0.05) if fixed else factory())
    bounds = Bounds(max_gradient_evaluations=8)
    session = Session(save_initialization(learner, tmp_path, bounds=bounds, check=False))
    words = refusal(session, "adapt", support_x=X, support_y=Y)
    assert "needs more than 8 gradient evaluations" in words


@pytest.mark.long
def test_steps_of_a_fixed_size_are_their_own_bound(tmp_path):
    learner = learner_of(network(), solver=amaml.solvers.Heun(0.1))
    path = save_initialization(learner, tmp_path, check=False)
    assert read_contract(path)["bounds"]["max_gradient_evaluations"] == 20
    served = tf.saved_model.load(path)
    assert served.adapt(X, Y)["gradient_evaluations"] == 20


# -- several tasks --------------------------------------------------------------------------------


def batch(*tasks, rows=6):
    """Tasks of (x, y), padded with NaN and impossible labels."""
    joined: dict[str, list] = {
        name: [] for name in ("support_x", "support_y", "support_weight", "query_x")
    }
    for x, y in tasks:
        missing = rows - len(x)
        padding = np.nan if y.dtype.kind == "f" else 99
        joined["support_x"].append(np.pad(x, ((0, missing), (0, 0)), constant_values=np.nan))
        widths = ((0, missing), *((0, 0),) * (y.ndim - 1))
        joined["support_y"].append(np.pad(y, widths, constant_values=padding))
        joined["support_weight"].append(np.arange(rows) < len(x))
        joined["query_x"].append(X)
    arrays = {name: np.stack(values) for name, values in joined.items()}
    return {**arrays, "support_weight": arrays["support_weight"].astype("float32")}


def test_a_batch_gives_each_task_what_it_gets_alone(classifier):
    """E13: dynamic batching joins requests along the first axis."""
    _, session = classifier
    tasks = [(X, LABELS), (X[:3] + 1, LABELS[:3]), (X[:1], LABELS[2:3])]
    answer = session("adapt_and_predict_batch", **batch(*tasks))
    for place, (x, y) in enumerate(tasks):
        alone = session("adapt_and_predict", support_x=x, support_y=y, query_x=X)
        for name in ("predictions", "probabilities", "support_loss_before", "support_loss_after"):
            np.testing.assert_allclose(answer[name][place], alone[name], rtol=1e-3, atol=1e-4)
        np.testing.assert_array_equal(answer["classes"][place], alone["classes"])
    assert set(answer["error"]) == {b""}


def test_a_bad_task_does_not_touch_the_others(regression):
    _, session = regression
    bad = [(X, Y * np.nan), (X[:0], Y[:0]), (X, Y * 1e4)]
    answer = session("adapt_and_predict_batch", **batch((X, Y), *bad))
    alone = session("adapt_and_predict", support_x=X, support_y=Y, query_x=X)
    np.testing.assert_allclose(answer["predictions"][0], alone["predictions"], atol=1e-4)
    assert answer["error"][0] == b""
    assert np.isnan(answer["predictions"][1:]).all()
    for said, words in zip(
        answer["error"][1:],
        ["support_y of finite numbers", "support_weight above 0", "500 gradient evaluations"],
        strict=True,
    ):
        assert words in said.decode()


def test_each_task_of_a_batch_has_its_time(regression):
    _, session = regression
    times = np.array([1, 0.1, 11, np.nan], "float32")
    inputs = batch(*[(X, Y)] * 4)
    answer = session("adapt_and_predict_timed_batch", final_time=times, **inputs)
    weight = np.ones(5, "float32")
    for place, time_of_task in enumerate(times[:2]):
        given = {"support_x": X, "support_y": Y, "support_weight": weight, "query_x": X}
        alone = session("adapt_and_predict_weighted", final_time=time_of_task, **given)
        np.testing.assert_allclose(answer["predictions"][place], alone["predictions"], atol=1e-4)
    for place, came in ((2, "11"), (3, "nan")):
        words = f"Expected final_time, one number above 0 and at most 10, got {came}; send a time"
        assert words in answer["error"][place].decode()
        assert np.isnan(answer["predictions"][place]).all()
        assert answer["gradient_evaluations"][place] == 0
    for wrong, words in (
        (times[0], "of shape [tasks], got shape []"),
        (times[:, np.newaxis], "of shape [tasks], got shape [4 1]"),
        (times[:3], "with as many tasks as support_x, 4, got 3"),
    ):
        said = refusal(session, "adapt_and_predict_timed_batch", final_time=wrong, **inputs)
        assert f"Expected final_time {words}" in said


def test_a_batch_has_bounds_and_shapes(regression):
    _, session = regression
    words = refusal(session, "adapt_and_predict_batch", **batch(*[(X, Y)] * 5))
    assert "Expected support_x with at most 4 tasks, the bound of this export, got 5" in words
    inputs = batch((X, Y), (X, Y))
    inputs["support_weight"] = inputs["support_weight"][:, :3]
    words = refusal(session, "adapt_and_predict_batch", **inputs)
    assert "Expected support_weight with as many rows as support_x, 6, got 3" in words
    inputs = batch((X, Y), (X, Y))
    inputs["query_x"] = inputs["query_x"][:1]
    words = refusal(session, "adapt_and_predict_batch", **inputs)
    assert "Expected query_x with as many tasks as support_x, 2, got 1" in words


# -- names ----------------------------------------------------------------------------------------


def test_names_of_parameters_are_places_and_files(tmp_path):
    """E9, E10: every parameter, the same names whatever else was built, no slashes."""
    found = []
    for _ in range(2):  # Keras numbers the layers of the second model on
        model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(3), keras.layers.Dense(1)])
        model.layers[1].name = model.layers[0].name = "twin"
        served = tf.saved_model.load(save_initialization(learner_of(model), tmp_path, check=False))
        answer = served.adapt(X, Y)
        found.append(sorted(name for name in answer if name.startswith("parameter_")))
        assert not any("/" in name for name in answer)
    kernels_and_biases = [f"parameter_0{n}_{kind}" for n, kind in enumerate(["kernel", "bias"] * 2)]
    assert found[0] == found[1] == kernels_and_biases


class Named(keras.layers.Layer):
    """A sum of products with weights of any names."""

    def build(self, shape):
        self.own = [self.add_weight((shape[-1], 1), name=name) for name in ("größe", "a b", "a b")]

    def call(self, x):
        return sum(keras.ops.matmul(x, each) for each in self.own)


@pytest.mark.long
def test_names_that_keras_takes_and_graphs_do_not(tmp_path):
    """Of layers, weights, inputs and outputs; two that differ only in such letters stay two."""
    names = "größe", "x y"
    inputs = [keras.Input((2,), name=name) for name in names]
    hidden = keras.layers.Dense(2, name="_hidden layer")(keras.layers.Add(name="层")(inputs))
    outputs = [Named(name="a\\b")(hidden), keras.layers.Dense(1, name="_o")(hidden)]
    learner = learner_of(keras.Model(inputs, outputs), ["mse", "mse"], final_time=0.1)
    built = [variable.value.name for variable in learner.model.variables]
    answer = tf.saved_model.load(save_initialization(learner, tmp_path)).signatures["adapt"](
        support_x_gr__e=X, support_x_x_y=X, support_y_a_b=Y, support_y__o=Y
    )
    kinds = ("kernel", "bias", "gr__e", "a_b", "a_b", "kernel", "bias")
    expected = learner.adapt(([X, X], [Y, Y])).get_weights()
    for place, (kind, value) in enumerate(zip(kinds, expected, strict=True)):
        np.testing.assert_allclose(answer[f"parameter_0{place}_{kind}"], value, atol=1e-5)
    assert built == [variable.value.name for variable in learner.model.variables]


@pytest.mark.long
def test_several_inputs_and_outputs_have_names(tmp_path):
    left, right = keras.Input((2,), name="left"), keras.Input((1,), name="right")
    hidden = keras.layers.Concatenate()([left, right])
    outputs = [
        keras.layers.Dense(1, name="level")(hidden),
        keras.layers.Dense(3, name="kind")(hidden),
    ]
    model = keras.Model([left, right], outputs)
    loss = ["mse", keras.losses.SparseCategoricalCrossentropy(from_logits=True)]
    learner = learner_of(model, loss)
    session = Session(save_initialization(learner, tmp_path))
    x = {"left": X, "right": X[:, :1]}
    answer = session(
        "adapt_and_predict",
        **{f"{begin}_{end}": v for begin in ("support_x", "query_x") for end, v in x.items()},
        support_y_level=Y,
        support_y_kind=LABELS,
    )
    level, kind = learner.adapt(([X, X[:, :1]], [Y, LABELS]))([X, X[:, :1]])
    np.testing.assert_allclose(answer["predictions_level"], level, atol=1e-5)
    np.testing.assert_allclose(answer["predictions_kind"], kind, atol=1e-5)
    words = refusal(session, "serving_default", x_left=X, x_right=X[:1, :1])
    assert "Expected x_right with as many rows as x_left, 5, got 1" in words
