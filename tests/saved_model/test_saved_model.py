"""Exported initializations: what comes out of a SavedModel is what the learner computes."""

import functools
import sys

import keras
import numpy as np
import problems
import pytest
import tensorflow as tf
from absl import flags
from absl.testing import flagsaver
from tensorflow.core.protobuf import saved_model_pb2

import amaml_tf as amaml
from amaml_tf import saved_model
from amaml_tf.commands import export
from amaml_tf.experiment import Experiment
from amaml_tf.saved_model import load_initialization
from amaml_tf.training import Checkpoints

#: What is written is checked in tests of its own, and not everywhere: that takes seconds.
save_initialization = functools.partial(saved_model.save_initialization, check=False)

GRADIENT_DESCENT = amaml.solvers.GradientDescent(0.05)
CHEBYSHEV = amaml.solvers.RungeKuttaChebyshev()
STABILISED = amaml.solvers.RungeKuttaChebyshev(step_size=0.5, num_stages=4, name="stabilised")


def learner_of(model, loss="mse", solver=GRADIENT_DESCENT, batch_statistics=True, **learned):
    flow = amaml.GradientFlow(final_time=1.0, solver=solver)
    learner = amaml.MetaLearner(
        model, amaml.algorithms.AdjointMAML(flow, **learned), batch_statistics=batch_statistics
    )
    learner.compile(loss=loss, jit_compile="off")
    return learner


def small_model(dtype="float32", **options):
    return amaml.models.multilayer_perceptron((2,), 1, (4,), dtype=dtype, seed=0, **options)


def examples(size, dtype="float32", seed=0):
    x = np.random.default_rng(seed).normal(size=(size, 2)).astype(dtype)
    return x, np.sin(x[:, :1] + x[:, 1:])


def first_task(problem):
    return tf.nest.map_structure(lambda v: v[0], problem.episodes)


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """A learner, and where its export lies."""
    learner = learner_of(small_model())
    return learner, save_initialization(learner, tmp_path_factory.mktemp("exports") / "small")


# -- the signatures -----------------------------------------------------------------------------


@pytest.mark.long
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("solver", [GRADIENT_DESCENT, CHEBYSHEV, STABILISED], ids=lambda s: s.name)
def test_export_predicts_as_the_adapted_model(tmp_path, solver, dtype):
    learner = learner_of(small_model(dtype), solver=solver)
    served = tf.saved_model.load(save_initialization(learner, tmp_path))
    query_x, _ = examples(6, dtype, seed=9)
    for size in (3, 8):
        support = examples(size, dtype, seed=size)
        adapted = learner.adapt(support)
        answer = served.signatures["adapt_and_predict"](
            support_x=support[0], support_y=support[1], query_x=query_x
        )
        tolerance = 1e-5 if dtype == "float32" else 1e-12
        expected = adapted(query_x)  # `predict` would cast float64 inputs to float32
        np.testing.assert_allclose(answer["predictions"], expected, rtol=tolerance, atol=tolerance)
        parameters = served.signatures["adapt"](support_x=support[0], support_y=support[1])
        named = sorted(name for name in parameters if name.startswith("parameter_"))
        for name, value in zip(named, adapted.get_weights(), strict=True):
            np.testing.assert_allclose(parameters[name], value, atol=tolerance)


def test_requests_leave_nothing_behind(exported):
    learner, path = exported
    served = tf.saved_model.load(path)
    x, y = examples(5)

    def predictions_before_adaptation():
        return served.signatures["serving_default"](x=x)["predictions"].numpy()

    np.testing.assert_allclose(
        predictions_before_adaptation(), learner.model.predict(x, verbose=0), rtol=1e-6
    )
    first = served.adapt_and_predict(x, y, x)["predictions"].numpy()
    np.testing.assert_array_equal(first, served.adapt_and_predict(x, y, x)["predictions"])
    np.testing.assert_allclose(
        predictions_before_adaptation(), learner.model.predict(x, verbose=0), rtol=1e-6
    )


@pytest.mark.parametrize("batch_statistics", [True, False])
def test_batch_normalization_is_that_of_the_learner(tmp_path, batch_statistics):
    problem = problems.convolutional()
    learner = learner_of(problem.model, problem.loss, batch_statistics=batch_statistics)
    path = save_initialization(
        learner, tmp_path, query_statistics="batch", statistics_from=[problem.episodes]
    )
    served = tf.saved_model.load(path)
    (support_x, support_y), (query_x, _) = first_task(problem)
    _, expected = learner.predict_episodes(problem.episodes).after
    answer = served.adapt_and_predict(support_x, tf.cast(support_y, tf.int32), query_x)
    np.testing.assert_allclose(answer["predictions"], expected[0], rtol=1e-10)


def test_an_answer_does_not_depend_on_other_queries(tmp_path):
    """E1: one query a request was normalized by itself."""
    problem = problems.convolutional()
    learner = learner_of(problem.model, problem.loss)
    path = save_initialization(learner, tmp_path, statistics_from=[problem.episodes])
    served = tf.saved_model.load(path).signatures
    (x, y), (query_x, _) = first_task(problem)
    y = tf.cast(y, tf.int32)
    expected = learner.adapt((x, y))(query_x, training=False)  # has the support's statistics
    support = {"support_x": x, "support_y": y}
    together = served["adapt_and_predict"](query_x=query_x, **support)["predictions"]
    np.testing.assert_allclose(together, expected, rtol=1e-8)
    alone = served["adapt_and_predict"](query_x=query_x[:1], **support)["predictions"]
    np.testing.assert_allclose(alone, expected[:1], rtol=1e-8)
    named = served["predict_with"].structured_input_signature[1]
    adapted = {n: v for n, v in served["adapt"](**support).items() if n in named}
    later = served["predict_with"](x=query_x[1:2], **adapted)["predictions"]
    np.testing.assert_allclose(later, expected[1:2], rtol=1e-8)
    tasks = {n: tf.stack([v, v]) for n, v in {**support, "query_x": query_x[:1]}.items()}
    weight = tf.ones(tasks["support_y"].shape)
    batch = served["adapt_and_predict_batch"](support_weight=weight, **tasks)["predictions"]
    np.testing.assert_allclose(batch, tf.stack([expected[:1]] * 2), rtol=1e-6)


def test_exports_what_the_algorithm_has_learned(tmp_path):
    learner = learner_of(
        small_model(), solver=CHEBYSHEV, learn_final_time=True, learned_rates="tensor"
    )
    for variable in learner.algorithm_variables:
        variable.assign(variable + 0.3)
    served = tf.saved_model.load(save_initialization(learner, tmp_path))
    x, y = examples(5)
    np.testing.assert_allclose(
        served.adapt_and_predict(x, y, x)["predictions"],
        learner.adapt((x, y)).predict(x, verbose=0),
        rtol=1e-5,
    )


def test_failed_flow_is_an_error_of_the_request(exported):
    served = tf.saved_model.load(exported[1])
    x, y = examples(5)
    for signature in ("adapt", "adapt_and_predict"):
        query = {"query_x": x} if signature == "adapt_and_predict" else {}
        with pytest.raises(
            tf.errors.InvalidArgumentError, match=r"Expected support_y of finite numbers"
        ):
            served.signatures[signature](support_x=x, support_y=np.full_like(y, np.nan), **query)
    assert np.isfinite(served.adapt_and_predict(x, y, x)["predictions"]).all()


def test_no_function_needs_xla_or_python(tmp_path):
    learner = learner_of(small_model())
    learner.compile(loss="mse", jit_compile="on")
    learner.adapt(examples(4))
    saved = saved_model_pb2.SavedModel()
    saved.ParseFromString((save_initialization(learner, tmp_path) / "saved_model.pb").read_bytes())
    functions = saved.meta_graphs[0].graph_def.library.function
    assert len(functions) > 5
    assert not any(function.attr["_XlaMustCompile"].b for function in functions)
    assert not any("PyFunc" in node.op for function in functions for node in function.node_def)


@pytest.mark.parametrize(
    ("loss", "expected"),
    [
        ("sparse_categorical_crossentropy", tf.TensorSpec([None], tf.int32)),
        (keras.losses.SparseCategoricalCrossentropy(), tf.TensorSpec([None], tf.int32)),
        (keras.losses.CategoricalCrossentropy(), tf.TensorSpec([None, 3], tf.float32)),
        (lambda y, p: tf.reduce_mean(abs(y - p)), tf.TensorSpec([None, 3], tf.float32)),
    ],
)
def test_targets_are_what_the_loss_takes(tmp_path, loss, expected):
    learner = learner_of(amaml.models.multilayer_perceptron((2,), 3, (4,)), loss)
    served = tf.saved_model.load(save_initialization(learner, tmp_path))
    _, arguments = served.signatures["adapt"].structured_input_signature
    assert arguments["support_y"].shape.as_list() == expected.shape.as_list()
    assert arguments["support_y"].dtype == expected.dtype


def test_targets_as_given(tmp_path):
    path = save_initialization(
        learner_of(small_model()), tmp_path, target_spec=tf.TensorSpec([None, 1], tf.int64)
    )
    x, y = examples(4)
    served = tf.saved_model.load(path)
    served.adapt(x, y.astype("int64"))


# -- the Keras model ----------------------------------------------------------------------------


def test_loads_an_ordinary_keras_model(exported):
    learner, path = exported
    model = load_initialization(path)
    for value, expected in zip(model.get_weights(), learner.model.get_weights(), strict=True):
        np.testing.assert_array_equal(value, expected)
    model.compile(optimizer="adam", loss="mse")
    losses = model.fit(*examples(16), epochs=20, verbose=0).history["loss"]
    assert losses[-1] < losses[0]


def test_loads_the_highest_version(tmp_path):
    model = small_model()
    learner = learner_of(model)
    assert save_initialization(learner, tmp_path).name == "1"
    assert save_initialization(learner, tmp_path, version=9).name == "9"
    model.layers[-1].bias.assign([3.0])
    assert save_initialization(learner, tmp_path).name == "10"
    (tmp_path / "11").mkdir()  # not an export
    assert load_initialization(tmp_path).layers[-1].bias == 3.0
    assert load_initialization(tmp_path / "9").layers[-1].bias == 0.0


def test_frozen_layers_stay_frozen(tmp_path):
    model = small_model()
    model.layers[1].trainable = False
    model = load_initialization(save_initialization(learner_of(model), tmp_path))
    assert [layer.trainable for layer in model.layers[1:]] == [False, True]


class OwnLayer(keras.layers.Dense):
    pass


def test_layers_that_keras_does_not_know(tmp_path):
    model = keras.Sequential([keras.Input((2,)), OwnLayer(1)])
    save_initialization(learner_of(model), tmp_path)
    with pytest.raises(ValueError, match=r"OwnLayer.*custom_objects=") as error:
        load_initialization(tmp_path)
    assert "\n" not in str(error.value)
    assert load_initialization(tmp_path, {"OwnLayer": OwnLayer}).count_params() == 3


class OwnModel(keras.Model):
    def __init__(self, **options):
        super().__init__(**options)
        self.dense = keras.layers.Dense(1)

    def call(self, x, training=None):
        return self.dense(x)


def test_models_without_an_input_need_its_spec(tmp_path):
    model = OwnModel()
    x, _ = examples(4)
    model(x)
    learner = learner_of(model)
    with pytest.raises(ValueError, match="got 0 of them; pass input_spec="):
        save_initialization(learner, tmp_path)
    save_initialization(learner, tmp_path, input_spec=tf.TensorSpec([None, 2]))
    loaded = load_initialization(tmp_path, {"OwnModel": OwnModel})
    np.testing.assert_array_equal(loaded(x), model(x))


# -- what can be wrong --------------------------------------------------------------------------


def test_an_interrupted_export_leaves_nothing(tmp_path, monkeypatch):
    learner = learner_of(small_model())

    def interrupted(path):
        raise KeyboardInterrupt

    monkeypatch.setattr(learner.model, "save", interrupted)
    with pytest.raises(KeyboardInterrupt):
        save_initialization(learner, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_refuses_what_it_cannot_export(tmp_path):
    with pytest.raises(ValueError, match="compile"):
        save_initialization(amaml.MetaLearner(small_model()), tmp_path)
    learner = learner_of(small_model())
    with pytest.raises(ValueError, match="from 1 on, got 0"):
        save_initialization(learner, tmp_path, version=0)
    (tmp_path / "3").mkdir()
    with pytest.raises(ValueError, match="got 3, which is in"):
        save_initialization(learner, tmp_path, version=3)
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match="a folder that can be written"):
        save_initialization(learner, tmp_path / "file")


def test_refuses_what_is_no_export(tmp_path):
    with pytest.raises(FileNotFoundError, match="no such folder; write one"):
        load_initialization(tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match="a folder without one; write one"):
        load_initialization(tmp_path)
    small_model().export(tmp_path / "1", verbose=False)
    with pytest.raises(FileNotFoundError, match=r"without .*initialization\.keras"):
        load_initialization(tmp_path)


# -- the command --------------------------------------------------------------------------------


@pytest.fixture
def workdir(tmp_path):
    """A run with a checkpoint, as if it were trained."""
    experiment = Experiment(task="sinusoid", hidden_units=(4,), final_time=0.1)
    experiment.write(tmp_path)
    Checkpoints(experiment.make_learner(experiment.make_family()), tmp_path).save()
    return tmp_path


@pytest.fixture
def call(monkeypatch):
    """Runs the command in this process; returns its exit status, or its last words."""

    def called(*arguments):
        monkeypatch.setattr(sys, "argv", ["amaml-export", *arguments])
        with flagsaver.flagsaver():
            flags.FLAGS.unparse_flags()
            with pytest.raises(SystemExit) as ending:
                export.run()
        return ending.value.code

    return called


def test_command_exports_a_run(call, workdir, capsys):
    assert call(f"--workdir={workdir}", "--version=7") is None
    assert str(workdir / "export" / "7") in capsys.readouterr().out
    assert load_initialization(workdir / "export").count_params() == 13


def test_command_tells_a_mistake_in_one_sentence(call, workdir, tmp_path):
    empty = tmp_path / "empty"
    assert "to be the folder of a run" in call(f"--workdir={empty}")
    (workdir / "export" / "2").mkdir(parents=True)
    assert "a version that is not there yet" in call(f"--workdir={workdir}", "--version=2")
