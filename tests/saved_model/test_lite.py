"""LiteRT files: the plain interpreter gives the answers of the learner."""

import types

import keras
import numpy as np
import pytest
import tensorflow as tf

import amaml_tf as amaml
from amaml_tf.commands import export
from amaml_tf.experiment import Experiment
from amaml_tf.experiment.task_file import write_task
from amaml_tf.saved_model.lite import lite_model
from amaml_tf.training import Checkpoints

interpreter = pytest.importorskip(
    "ai_edge_litert.interpreter", reason="ai-edge-litert is not there: pip install '.[lite]'"
)

SOLVERS = {
    "gradient_descent": amaml.solvers.GradientDescent(0.005),
    "runge_kutta_chebyshev": amaml.solvers.RungeKuttaChebyshev(),
    "stabilised": amaml.solvers.RungeKuttaChebyshev(step_size=0.25, num_stages=5),
    "dormand_prince": amaml.solvers.DormandPrince(),
}


def learner_of(model, loss, algorithm):
    learner = amaml.MetaLearner(model, algorithm)
    learner.compile(loss=loss, jit_compile="off")
    return learner


def runner_of(learner, rows, **options):
    """Returns a function for each signature of a LiteRT file, and its size."""
    content = lite_model(learner, rows, **options)
    lite = interpreter.Interpreter(model_content=content)
    names = lite.get_signature_list()
    return types.SimpleNamespace(**{n: lite.get_signature_runner(n) for n in names}), len(content)


def predicted_later(lite, x, y, query_x):
    """Adapts in one call and predicts in the next."""
    taken = lite.predict_with.get_input_details()
    adapted = {n: v for n, v in lite.adapt(support_x=x, support_y=y).items() if n in taken}
    return lite.predict_with(x=query_x, **adapted)["predictions"]


@pytest.mark.parametrize("family", ["sinusoid", "alpine"])
@pytest.mark.parametrize("name", SOLVERS)
def test_answers_of_regressors_are_those_of_the_learner(name, family):
    if (name, family) in (("dormand_prince", "alpine"), ("stabilised", "alpine")):
        pytest.skip("one family is enough for this solver")
    if family == "sinusoid":
        tasks = amaml.tasks.SinusoidFamily(num_support=10, num_query=7)
        model = amaml.models.multilayer_perceptron((1,), 1, (20, 20), seed=0)
    else:
        tasks = amaml.tasks.AlpineFamily(num_support=10, num_query=7)  # type: ignore[assignment]
        model = amaml.models.multilayer_perceptron((2,), 1, (20, 20), seed=0)
    flow = amaml.GradientFlow(final_time=0.5, solver=SOLVERS[name])
    learner = learner_of(model, "mse", amaml.algorithms.AdjointMAML(flow))
    lite, size = runner_of(learner, 10)
    runner = lite.adapt_and_predict
    assert size < 500_000
    for number in range(3):
        (x, y), (query_x, _) = tasks.task_episode("test", number)  # type: ignore[misc]
        x, y, query_x = (np.asarray(v, "float32") for v in (x, y, query_x))
        answer = runner(support_x=x, support_y=y, query_x=query_x)
        expected = learner.adapt((x, y)).predict(query_x, verbose=0)
        np.testing.assert_allclose(answer["predictions"], expected, rtol=1e-4, atol=1e-4)
        later = predicted_later(lite, x, y, query_x)
        np.testing.assert_allclose(later, expected, rtol=1e-4, atol=1e-4)
        assert abs(expected - learner.model.predict(query_x, verbose=0)).max() > 0.05
        assert answer["support_loss_after"] < answer["support_loss_before"]
        assert answer["gradient_evaluations"] > 5
    with pytest.raises((RuntimeError, ValueError)):
        runner(support_x=x[:6], support_y=y[:6], query_x=query_x)
    answer = runner(support_x=x, support_y=np.full_like(y, np.nan), query_x=query_x)
    assert np.isnan(answer["predictions"]).all()
    assert np.isnan(predicted_later(lite, x, np.full_like(y, np.nan), query_x)).all()


def classifier():
    return amaml.models.convolutional_network((16, 16, 1), 3, filters=4, num_blocks=2, seed=0)


@pytest.mark.parametrize("statistics", ["support", "batch"])
def test_a_classifier_whose_head_adapts(statistics):
    learner = learner_of(
        classifier(),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        amaml.algorithms.ANIL(0.5, 5),
    )
    lite, _ = runner_of(learner, 6, query_statistics=statistics)
    rng = np.random.default_rng(0)
    x, query_x = rng.uniform(size=(2, 6, 16, 16, 1)).astype("float32")
    y = np.array([0, 0, 1, 1, 2, 2], "int32")
    answer = lite.adapt_and_predict(support_x=x, support_y=y, query_x=query_x)
    episodes = tf.nest.map_structure(lambda v: v[np.newaxis], ((x, y), (query_x, y)))
    before, after, _ = learner.predict_episodes(episodes)
    expected = after[1][0] if statistics == "batch" else learner.adapt((x, y))(query_x)
    np.testing.assert_allclose(answer["predictions"], expected, rtol=1e-4, atol=1e-4)
    later = predicted_later(lite, x, y, query_x)
    np.testing.assert_allclose(later, expected, rtol=1e-4, atol=1e-4)
    # The convolutions do not adapt: they are constants.
    taken = set(lite.predict_with.get_input_details())
    parameters = {name for name in taken if name.startswith("parameter_")}
    assert parameters == {"parameter_06_kernel", "parameter_07_bias"}
    assert any(name.startswith("statistic_") for name in taken) == (statistics == "support")
    assert abs(after[1] - before[1]).numpy().max() > 0.01


def test_the_command_writes_a_file_in_raw_units(tmp_path, monkeypatch, new_flags):
    experiment = Experiment(
        task="alpine",
        algorithm="maml",
        step_size=0.02,
        num_steps=3,
        num_support=10,
        num_query=5,
        hidden_units=(8,),
    )
    experiment.write(tmp_path)
    family = experiment.make_family()
    write_task(family, tmp_path)
    learner = experiment.make_learner(family)
    Checkpoints(learner, tmp_path).save()
    monkeypatch.setattr("sys.argv", ["amaml-export", f"--workdir={tmp_path}", "--lite"])
    with pytest.raises(SystemExit) as ending:
        export.run()
    assert ending.value.code is None
    path = tmp_path / "export" / "1" / "assets.extra" / "initialization.tflite"
    lite = interpreter.Interpreter(str(path)).get_signature_runner("adapt_and_predict")
    rng = np.random.default_rng(0)
    x, y = rng.uniform(-5, 5, (10, 2)).astype("float32"), rng.normal(8, 3, (10, 1))
    y = y.astype("float32")
    units = family.units
    assert units is not None
    expected = units.in_raw_units(learner.adapt(units.scaled(x, y)))(x)
    answer = lite(support_x=x, support_y=y, query_x=x)
    np.testing.assert_allclose(answer["predictions"], expected, rtol=1e-4, atol=1e-4)


def test_what_cannot_be_converted_is_named():
    flow = amaml.GradientFlow(final_time=0.1, solver=SOLVERS["gradient_descent"])
    whole = amaml.algorithms.AdjointMAML(flow)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    with pytest.raises(ValueError, match=r"got layer 'conv2d\w*' \(Conv2D\).*--algorithm=anil"):
        runner_of(learner_of(classifier(), loss, whole), 6)
    bdf = amaml.GradientFlow(final_time=0.1, solver=amaml.solvers.BDF(), adjoint="continuous")
    model = amaml.models.multilayer_perceptron((1,), 1, (4,))
    with pytest.raises(ValueError, match="got BDF, whose linear algebra"):
        runner_of(learner_of(model, "mse", amaml.algorithms.AdjointMAML(bdf)), 6)
    double = amaml.models.multilayer_perceptron((1,), 1, (4,), dtype="float64")
    with pytest.raises(ValueError, match="got float64"):
        runner_of(learner_of(double, "mse", whole), 6)
    model = keras.Sequential(
        [
            keras.Input((2,)),
            keras.layers.Dense(2),
            keras.layers.Lambda(tf.math.erfinv, name="own"),
            keras.layers.Dense(1),
        ]
    )
    with pytest.raises(ValueError, match=r"got .*Erfinv.* of layer 'own'"):
        runner_of(learner_of(model, "mse", whole), 6)
