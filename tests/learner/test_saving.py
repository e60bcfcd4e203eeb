"""A learner is saved and loaded as a whole, and training goes on with the same bits."""

import inspect
import json
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
import tensorflow_probability as tfp

import amaml_tf as amaml
from amaml_tf import algorithms, solvers

DROPOUT = keras.layers.Dropout(0.4).rate  # some noise, whose seeds must be saved


def episodes(seed=0):
    rng = np.random.default_rng(seed)

    def examples():
        return tuple(tf.constant(rng.normal(size=(2, 5, k)), tf.float32) for k in (3, 1))

    return examples(), examples()


def network(seed=0):
    keras.utils.set_random_seed(seed)
    layers = [keras.layers.Dropout(DROPOUT), keras.layers.Dense(1, name="head")]
    return keras.Sequential([keras.Input((3,)), *layers])


def learner_of(algorithm=None, seed=0, **options):
    learner = amaml.MetaLearner(network(seed), algorithm or algorithms.FirstOrderMAML(0.05, 2))
    options = {"loss": "mse", "vectorize": "off", "jit_compile": "off", **options}
    learner.compile(**{"optimizer": keras.optimizers.Adam(0.1), **options})
    return learner


def fit(learner, seed=0, **options):
    batches = tf.data.Dataset.from_tensors(episodes(seed)).repeat(2)
    return learner.fit(batches, verbose=0, **options).history


def everything(learner):
    return [np.array(v) for v in (*learner.variables, *learner.optimizer.variables)]


def assert_same_bits(one, other):
    for mine, its in zip(everything(one), everything(other), strict=True):
        np.testing.assert_array_equal(mine, its)


# -- what is made from the arguments ---------------------------------------------------------------

FLOW = amaml.GradientFlow(
    final_time=0.3, solver=solvers.RungeKuttaChebyshev(rtol=0.1, num_stages=4), max_checkpoints=64
)
#: Values for arguments whose default does not tell one.
OTHERS: dict[str, Any] = {
    "flow": FLOW,
    "adapted_layers": ["head"],
    "max_final_time": 3.0,
    "learned_rates": "tensor",
    "step_size": 0.03,
    "first_step_size": 0.2,
    "num_stages": 7,
    "name": "mine",
}


def unusual(kind):
    """Arguments of a class, as many as possible not as they are by default."""
    given: dict[str, Any] = {}
    for name, parameter in inspect.signature(kind).parameters.items():
        default = parameter.default
        if name in OTHERS:
            given[name] = OTHERS[name]
        elif isinstance(default, bool):
            given[name] = not default
        elif isinstance(default, int):
            given[name] = 2 * default
        elif isinstance(default, float):
            given[name] = 0.7 * default
    if "rtol" in inspect.signature(kind).parameters:
        # Steps of a fixed size have no tolerances, and adaptive ones have one order.
        for name in ("step_size", "order"):
            given.pop(name, None)
    return given


def text_of(value):
    return json.dumps(keras.saving.serialize_keras_object(value))


def through_a_file(value):
    return keras.saving.deserialize_keras_object(json.loads(text_of(value)))


@pytest.mark.parametrize(
    "kind",
    [*algorithms.REGISTRY.values(), *solvers.REGISTRY.values()],
    ids=[*algorithms.REGISTRY, *solvers.REGISTRY],
)
def test_every_algorithm_and_solver_is_made_again_with_all_arguments(kind):
    given = unusual(kind)
    if "num_stages" in given:  # a fixed number of stages is the largest one
        given["max_num_stages"] = given["num_stages"]
    made = through_a_file(kind(**given))
    assert type(made) is kind
    config = made.get_config()
    assert list(config) == list(inspect.signature(kind).parameters)
    for name, value in given.items():
        if name == "flow":
            assert made.flow.get_config() == FLOW.get_config()
        else:
            assert np.array_equal(config[name], value), name
    for name, value in vars(kind(**given)).items():
        if isinstance(value, (int, float, str)):
            assert vars(made)[name] == value


def test_stabilised_steps_are_made_again():
    solver = solvers.RungeKuttaChebyshev(step_size=0.1, num_stages=3, order=1)
    made = through_a_file(solver)
    assert made.get_config() == solver.get_config()
    assert not made.adaptive


@pytest.mark.parametrize("name", solvers.REGISTRY)
def test_a_flow_is_made_again(name):
    solver = solvers.REGISTRY[name](**unusual(solvers.REGISTRY[name]))
    flow = amaml.GradientFlow(
        final_time=0.7,
        solver=solver,
        adjoint="continuous",
        adjoint_solver=solver,
        proximal_weight=0.25,
    )
    made = through_a_file(flow)
    assert text_of(made) == text_of(flow)
    assert type(made.solver) is type(made.adjoint_solver) is type(solver)
    assert (made.final_time, made.proximal_weight, made.adjoint) == (0.7, 0.25, "continuous")


def test_a_value_that_was_changed_after_all_is_saved():
    algorithm = algorithms.ImplicitMAML()
    algorithm.cg_damping = 0.125
    assert through_a_file(algorithm).cg_damping == 0.125
    solver = tfp.math.ode.DormandPrince(rtol=0.02)
    assert through_a_file(amaml.GradientFlow(solver=solver)).solver.rtol == 0.02


# -- the learner -----------------------------------------------------------------------------------


@pytest.mark.long
@pytest.mark.parametrize("name", algorithms.REGISTRY)
def test_a_learner_goes_on_with_the_same_bits(name, tmp_path):
    kind = algorithms.REGISTRY[name]
    given = {"step_size": 0.05, "num_steps": 2, "learned_rates": "tensor", "max_final_time": 3.0}
    given["learn_final_time"] = True
    given["flow"] = amaml.GradientFlow(
        final_time=0.2, solver=solvers.GradientDescent(0.1, max_num_steps=8)
    )
    parameters = inspect.signature(kind).parameters
    check_that_it_goes_on(kind(**{n: v for n, v in given.items() if n in parameters}), tmp_path)


def check_that_it_goes_on(algorithm, folder):
    learner = learner_of(algorithm, metrics=["mae"], run_eagerly=True)
    fit(learner)
    learner.save(folder / "x.keras")
    loaded = keras.models.load_model(folder / "x.keras")
    assert_same_bits(loaded, learner)
    assert len(loaded.algorithm_variables) == len(algorithm.variables)
    assert fit(loaded, seed=3) == fit(learner, seed=3)
    assert_same_bits(loaded, learner)


def test_learned_rates_go_on_with_the_same_bits(tmp_path):
    check_that_it_goes_on(algorithms.MetaSGD(0.05), tmp_path)


def scaled(y_true, y_pred):
    return 3.0 * tf.square(y_true - y_pred)


def test_it_is_compiled_as_before(tmp_path):
    given = {
        "loss": keras.losses.Tversky(alpha=0.3),
        "loss_weights": 0.5,
        "metrics": ["mae", keras.metrics.MeanSquaredError(name="mine"), scaled],
        "task_clip_norm": 0.25,
        "on_failure": "drop",
        "run_eagerly": True,
        "steps_per_execution": 2,
    }
    learner = learner_of(optimizer=keras.optimizers.SGD(0.5, momentum=0.25), **given)
    learner.optimizer.learning_rate = 0.125  # by a callback, for example
    learner.batch_statistics = False
    learner.save(tmp_path / "x.keras")
    loaded = keras.models.load_model(tmp_path / "x.keras", custom_objects={"scaled": scaled})
    assert loaded.get_compile_config() == learner.get_compile_config()
    assert loaded.optimizer.learning_rate == 0.125
    assert (loaded.optimizer.momentum, loaded.batch_statistics) == (0.25, False)
    assert loaded.execution == learner.execution
    assert (loaded.run_eagerly, loaded.steps_per_execution) == (True, 2)
    batches = tf.data.Dataset.from_tensors(episodes())
    expected = learner.evaluate(batches, verbose=0, return_dict=True)
    found = loaded.evaluate(batches, verbose=0, return_dict=True)
    assert found == pytest.approx(expected, rel=1e-5)
    assert {"mae", "mine_before", "scaled", "dropped_tasks"} <= set(expected)


def test_a_learner_that_is_not_compiled_is_saved_too(tmp_path):
    learner = amaml.MetaLearner(network(), algorithms.MAML(0.05, 2), name="mine")
    learner.save(tmp_path / "x.keras")
    loaded = keras.models.load_model(tmp_path / "x.keras")
    assert (loaded.name, loaded.compiled) == ("mine", False)
    for one, other in zip(loaded.variables, learner.variables, strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("how", ["load_model", "load_weights"])
def test_learned_rates_wait_for_compile(how, tmp_path):
    learner = learner_of(algorithms.MetaSGD(0.05))
    learner.algorithm_variables[0].assign([1.0, 2.0, 3.0, 4.0])
    if how == "load_model":
        learner.save(tmp_path / "x.keras")
        loaded = keras.models.load_model(tmp_path / "x.keras", compile=False)
    else:
        learner.save_weights(tmp_path / "x.weights.h5")
        loaded = amaml.MetaLearner(network(), algorithms.MetaSGD(0.05))
        loaded.load_weights(tmp_path / "x.weights.h5")
    loaded.compile(loss="mse")
    np.testing.assert_array_equal(loaded.algorithm_variables[0], [1.0, 2.0, 3.0, 4.0])
    loaded.algorithm_variables[0].assign([0.0, 0.0, 0.0, 0.0])
    loaded.compile(loss="mae")  # does not assign again
    np.testing.assert_array_equal(loaded.algorithm_variables[0], [0.0, 0.0, 0.0, 0.0])


# -- Keras's callbacks -----------------------------------------------------------------------------


@pytest.mark.parametrize("weights_only", [False, True])
def test_checkpoints_of_keras(weights_only, tmp_path):
    path = tmp_path / ("x.weights.h5" if weights_only else "x.keras")
    learner = learner_of(run_eagerly=True)
    checkpoint = keras.callbacks.ModelCheckpoint(path, save_weights_only=weights_only)
    fit(learner, callbacks=[checkpoint])
    if weights_only:
        loaded = learner_of(run_eagerly=True, seed=1)
        loaded.optimizer.build(loaded.trainable_variables)
        loaded.load_weights(path)
    else:
        loaded = keras.models.load_model(path)
    assert_same_bits(loaded, learner)


class Interruption(keras.callbacks.Callback):
    def on_epoch_begin(self, epoch, logs=None):
        if epoch == 2:
            raise KeyboardInterrupt


def test_an_interrupted_run_is_resumed_with_the_same_bits(tmp_path):
    def run(learner, *callbacks):
        backup = keras.callbacks.BackupAndRestore(tmp_path / "backup")
        fit(learner, epochs=3, callbacks=[backup, *callbacks])

    straight = learner_of(run_eagerly=True)
    fit(straight, epochs=3)
    with pytest.raises(KeyboardInterrupt):
        run(learner_of(run_eagerly=True), Interruption())
    resumed = learner_of(run_eagerly=True, seed=1)
    run(resumed)
    assert_same_bits(resumed, straight)


# -- what cannot be saved --------------------------------------------------------------------------


class Foreign(tfp.math.ode.Solver):
    def _solve(self, *arguments, **options):
        raise NotImplementedError

    def _initialize_solver_internal_state(self, *arguments, **options):
        raise NotImplementedError


class Unnamed(algorithms.FirstOrderMAML):
    def __init__(self, *numbers):
        super().__init__(*numbers)


class Holder(algorithms.FirstOrderMAML):
    def __init__(self, kept=None):
        super().__init__(0.05, 2)
        self.kept = kept


class Logarithmic(algorithms.FirstOrderMAML):
    def __init__(self, step_size=0.05):
        super().__init__(step_size, 2)
        self.step_size = np.log(step_size)


class Configured(Unnamed):
    def get_config(self):
        return {"numbers": [self.flow.solver.step_size, 3]}

    @classmethod
    def from_config(cls, config):
        return cls(*config["numbers"])


def changed(algorithm):
    algorithm.flow = FLOW
    return algorithm


def continuous(solver):
    return algorithms.AdjointMAML(amaml.GradientFlow(solver=solver, adjoint="continuous"))


@pytest.mark.parametrize(
    ("algorithm", "sentence"),
    [
        (lambda: continuous(Foreign(None, False, "f")), "Expected solver of GradientFlow to be"),
        (lambda: continuous(tfp.math.ode.BDF()), "Expected solver of GradientFlow to be"),
        (lambda: Unnamed(0.05, 2), r"that names its arguments, got \*numbers; name them"),
        (lambda: Holder(object()), "Expected kept of Holder to be something that Keras can"),
        (lambda: Holder([lambda: 1]), "Expected kept of Holder to be something that can be loa"),
        (lambda: Logarithmic(), "Logarithmic to make it again, but they are refused"),
        (lambda: changed(algorithms.MAML()), "make it again, but flow would be"),
    ],
    ids=["solver", "bdf", "unnamed", "object", "lambda", "other meaning", "changed"],
)
def test_an_algorithm_that_cannot_be_made_again_is_refused(algorithm, sentence, tmp_path):
    learner = learner_of(algorithm())
    with pytest.raises(amaml.UsageError, match=sentence):
        learner.save(tmp_path / "x.keras")


class AboveThreshold(keras.metrics.Sum):
    def __init__(self, threshold=0.0, name="above", dtype=None):
        super().__init__(name, dtype)
        self.threshold = threshold


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"loss": lambda y, p: tf.square(y - p)}, "Expected loss of compile to be"),
        ({"metrics": ["mae", lambda y, p: tf.square(y - p)]}, "Expected metrics of compile to be"),
        (
            {"metrics": [keras.metrics.MeanMetricWrapper(lambda y, p: y - p, name="own")]},
            "define it by `def` at the top of a module",
        ),
        ({"loss": keras.losses.Huber(0.3)}, r"Huber to have all .* lacks {'delta': 0.3}; use a fu"),
        ({"loss": keras.losses.MeanSquaredError(dtype="float64")}, "lacks {'dtype': 'float64'}"),
        ({"metrics": [AboveThreshold(0.3)]}, r"AboveThreshold to have .* {'threshold': 0.3}"),
        ({"metrics": {"head": keras.metrics.CosineSimilarity(axis=0)}}, "lacks {'axis': 0}"),
    ],
    ids=["loss", "metric", "wrapped", "huber", "dtype", "own", "cosine"],
)
def test_what_is_lost_of_compile_is_refused(options, sentence, tmp_path):
    learner = learner_of(**options)
    with pytest.raises(amaml.UsageError, match=sentence):
        learner.save(tmp_path / "x.keras")


def test_a_configuration_of_ones_own():
    made = through_a_file(Configured(0.25, 7))
    assert type(made) is Configured
    assert (made.flow.solver.step_size, made.flow.final_time) == (0.25, 0.75)


def test_predictions_of_the_initialization_are_exported(tmp_path):
    learner = learner_of()
    learner.export(tmp_path / "exported", verbose=False)
    exported: Any = tf.saved_model.load(tmp_path / "exported")
    x = tf.ones((4, 3))
    np.testing.assert_allclose(exported.serve(x), learner(x), rtol=1e-6)
