"""What a Keras user does with a model does the same with a learner."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import amaml_tf as amaml
from amaml_tf.losses import HalfMeanSquaredError

LAYERS = keras.layers
MAML = amaml.algorithms.MAML


def examples(num_tasks=2, count=6, seed=0):
    rng = np.random.default_rng(seed)
    x, y = (rng.normal(size=(num_tasks, count, size)) for size in (3, 1))
    return tf.constant(x, tf.float32), tf.constant(y, tf.float32)


def episodes(num_tasks=2, seed=0):
    return examples(num_tasks, seed=seed), examples(num_tasks, seed=seed + 1)


def network(*layers):
    keras.utils.set_random_seed(0)
    return keras.Sequential([keras.Input((3,)), *layers, LAYERS.Dense(1)])


def learner_of(model=None, loss="mse", algorithm=None, optimizer="sgd", **options):
    learner = amaml.MetaLearner(model or network(), algorithm or MAML(0.05, 4))
    learner.compile(optimizer, loss=loss, **{"jit_compile": "off", **options})
    return learner


def fit(learner, batch, **options):
    return learner.fit(tf.data.Dataset.from_tensors(batch), verbose=0, **options).history


def first(batch):
    return tf.nest.map_structure(lambda value: value[0], batch)


@pytest.mark.parametrize(
    "optimizer",
    [
        lambda: keras.optimizers.LossScaleOptimizer(keras.optimizers.SGD(0.5)),
        lambda: keras.optimizers.LossScaleOptimizer(keras.optimizers.SGD(0.5, momentum=0.9)),
        lambda: keras.optimizers.SGD(0.5, loss_scale_factor=8.0),
        lambda: keras.optimizers.SGD(0.5),
    ],
    ids=["dynamic", "dynamic, momentum", "fixed", "plain"],
)
def test_a_step_is_rate_times_meta_gradient_whatever_scales_the_loss(optimizer):
    learner = learner_of(optimizer=optimizer())
    expected = learner.meta_gradients(episodes()).gradients
    before = [v.numpy() for v in learner.model.trainable_variables]
    fit(learner, episodes())
    for value, old, gradient in zip(
        learner.model.trainable_variables, before, expected, strict=True
    ):
        np.testing.assert_allclose(value, old - 0.5 * gradient, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("labels", ["[n]", "[n, 1]"])
@pytest.mark.parametrize(
    "loss",
    [
        "mse",
        "hinge",
        "poisson",
        "log_cosh",
        keras.losses.Huber(),
        keras.losses.MeanAbsoluteError(reduction="sum"),
        lambda y_true, y_pred: tf.square(y_true - y_pred),
    ],
    ids=["mse", "hinge", "poisson", "log_cosh", "object", "sum", "own"],
)
def test_losses_are_those_of_a_keras_model(loss, labels):
    model = network(LAYERS.Dense(4, "softplus"))
    (support_x, support_y), (query_x, query_y) = episodes()
    if labels == "[n]":
        support_y, query_y = support_y[..., 0], query_y[..., 0]
    learner = learner_of(model, loss)
    found = learner.predict_episodes(((support_x, support_y), (query_x, query_y))).before[0]
    model.compile(loss=loss)
    for task in range(2):
        expected = model.evaluate(query_x[task], query_y[task], verbose=0)
        np.testing.assert_allclose(found[task], expected, rtol=1e-5)


def two_outputs():
    keras.utils.set_random_seed(0)
    inputs = keras.Input((3,))
    outputs = [LAYERS.Dense(1, name=name)(inputs) for name in ("a", "b")]
    return keras.Model(inputs, outputs)


@pytest.mark.parametrize(
    "options",
    [
        {"loss": "mse"},
        {"loss": ["mse", "mae"]},
        {"loss": {"a": "mse", "b": "mae"}, "loss_weights": {"a": 2.0, "b": 0.5}},
        {"loss": ["mse", "mae"], "loss_weights": [0.5, 3.0]},
        {"loss": {"a": None, "b": keras.losses.Huber()}},
    ],
    ids=["one", "list", "dict and weights", "list and weights", "of one output"],
)
def test_several_outputs_have_a_loss_each(options):
    model = two_outputs()
    (support_x, support_y), (query_x, query_y) = episodes()
    batch = ((support_x, (support_y, -support_y)), (query_x, (query_y, -query_y)))
    learner = learner_of(model, **options)
    found = learner.predict_episodes(batch).before[0]
    logs = fit(learner, batch)
    model = two_outputs()
    model.compile(**options)
    expected = [
        model.evaluate(x, [y, -y], verbose=0, return_dict=True)
        for x, y in zip(query_x, query_y, strict=True)
    ]
    np.testing.assert_allclose(found[0], expected[0]["loss"], rtol=1e-5)
    by_output = {name for name in logs if name.endswith("_loss")}
    assert by_output == expected[0].keys() - {"loss"}
    for name in by_output:
        mean = np.mean([values[name] for values in expected])
        np.testing.assert_allclose(logs[f"{name}_before"], mean, rtol=1e-5)


def test_one_target_for_two_outputs_is_refused():
    with pytest.raises(amaml.UsageError, match="Expected targets for each of the 2 outputs"):
        learner_of(two_outputs()).meta_gradients(episodes())


def adapted_normalization():
    layer = LAYERS.Normalization()
    layer.adapt(np.random.default_rng(0).normal(5, 2, (50, 3)))
    return layer


@pytest.mark.parametrize(
    "layers",
    [
        lambda: [adapted_normalization()],
        lambda: [keras.Sequential([adapted_normalization(), LAYERS.Dense(2)])],
        lambda: [LAYERS.Normalization(mean=[1.0, 2.0, 3.0], variance=[4.0, 5.0, 6.0])],
        lambda: [LAYERS.Rescaling(0.5), LAYERS.LayerNormalization()],
    ],
    ids=["adapted", "nested", "given", "rescaling"],
)
def test_an_adapted_copy_predicts_what_the_learner_predicts(layers):
    learner, batch = learner_of(network(*layers())), episodes()
    copy = learner.adapt(first(batch[0]))
    expected = learner.predict_episodes(batch).after[1][0]
    np.testing.assert_allclose(copy(batch[1][0][0]), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    "loss",
    ["mse", keras.losses.Huber(), HalfMeanSquaredError()],
    ids=["name", "object", "own"],
)
def test_an_adapted_model_is_saved_and_loaded_with_its_loss(tmp_path, loss):
    learner, (support, query) = learner_of(loss=loss, metrics=["mae"]), episodes()
    adapted = learner.adapt(first(support))
    adapted.save(tmp_path / "adapted.keras")
    loaded = keras.models.load_model(tmp_path / "adapted.keras")
    expected = adapted.evaluate(*first(query), verbose=0)
    np.testing.assert_allclose(loaded.evaluate(*first(query), verbose=0), expected, rtol=1e-6)


@pytest.mark.long
@pytest.mark.parametrize("how", [{}, {"jit_compile": "on"}, {"vectorize": "off"}], ids=str)
def test_batches_may_have_other_numbers_of_tasks(how):
    learner, losses = learner_of(**how), {}
    for num_tasks in (4, 2, 3):
        batch = episodes(num_tasks)
        losses[num_tasks] = learner.evaluate(
            tf.data.Dataset.from_tensors(batch), verbose=0, return_dict=True
        )["loss"]
        expected = np.mean(learner.predict_episodes(batch).after[0])
        np.testing.assert_allclose(losses[num_tasks], expected, rtol=1e-5)
        fit(learner, batch)
    assert len(set(losses.values())) == 3


@pytest.mark.long
@pytest.mark.parametrize("adjoint", ["discrete", "continuous"])
def test_a_flow_takes_batches_of_other_sizes_too(adjoint):
    flow = amaml.GradientFlow(final_time=0.5, adjoint=adjoint)
    algorithm = amaml.algorithms.AdjointMAML(flow, shortest_time=0.1)
    learner = learner_of(algorithm=algorithm, optimizer=keras.optimizers.SGD(1.0))
    for num_tasks in (4, 2, 3):
        before = [v.numpy() for v in learner.model.trainable_variables]
        expected = learner.meta_gradients(episodes(num_tasks)).gradients
        fit(learner, episodes(num_tasks))
        for variable, old, gradient in zip(
            learner.model.trainable_variables, before, expected, strict=True
        ):
            np.testing.assert_allclose(variable, old - gradient, rtol=1e-4, atol=1e-6)


class WithoutTraining(keras.Model):
    def __init__(self):
        super().__init__()
        self.dense = LAYERS.Dense(1)

    def call(self, x):
        return self.dense(x)


def test_a_model_whose_call_has_no_training_argument():
    model = WithoutTraining()
    model(tf.zeros((1, 3)))
    assert np.isfinite(fit(learner_of(model), episodes())["loss"])


def test_dropped_tasks_count_nowhere():
    support, (query_x, query_y) = episodes(3)
    poisoned = query_y.numpy()
    poisoned[1] = np.nan
    learner = learner_of(metrics=["mae"], on_failure="drop", optimizer=keras.optimizers.SGD(0.0))
    logs = fit(learner, (support, (query_x, tf.constant(poisoned))))
    sound = tf.nest.map_structure(lambda v: tf.gather(v, [0, 2]), (support, (query_x, query_y)))
    expected = fit(learner, sound)
    assert logs.pop("dropped_tasks") == [1]
    for name, values in logs.items():
        np.testing.assert_allclose(values, expected[name], rtol=1e-5)


@pytest.mark.parametrize(
    "constraint",
    ["non_neg", "unit_norm", keras.constraints.MaxNorm(1.0)],
    ids=["non_neg", "unit_norm", "max_norm"],
)
def test_constraints_on_adapted_parameters_are_refused(constraint):
    model = network(LAYERS.Dense(2, kernel_constraint=constraint))
    with pytest.raises(amaml.UsageError, match="Expected no constraints on parameters that are"):
        learner_of(model)
    head = model.layers[-1].name
    learner_of(model, algorithm=amaml.algorithms.ANIL(0.1, 1, [head]))  # is not adapted


@pytest.mark.parametrize(
    "algorithm",
    [
        lambda: amaml.algorithms.MetaSGD(0.05, 2),
        lambda: amaml.algorithms.AdjointMAML(
            amaml.GradientFlow(final_time=0.2), learn_final_time=True
        ),
        lambda: MAML(0.05, 2),
    ],
    ids=["rates", "time", "nothing more"],
)
def test_averages_of_the_optimizer_go_to_their_own_variables(algorithm):
    optimizer = keras.optimizers.SGD(0.1, use_ema=True, ema_momentum=0.25)
    learner = learner_of(algorithm=algorithm(), optimizer=optimizer)
    learner.fit(tf.data.Dataset.from_tensors(episodes()).repeat(2), verbose=0)
    plain = learner_of(algorithm=algorithm(), optimizer=keras.optimizers.SGD(0.1))
    passed = []
    for _ in range(2):
        fit(plain, episodes())
        passed.append([v.numpy() for v in plain.trainable_variables])
    for found, *values in zip(learner.trainable_variables, *passed, strict=True):
        assert not np.array_equal(*values)
        # Keras's average begins at the value after the first step.
        np.testing.assert_allclose(found, 0.25 * values[0] + 0.75 * values[1], rtol=1e-5)
    assert learner.optimizer.iterations == 2


def test_metrics_in_a_dict_with_their_settings():
    metrics = {"a": ["mae"], "b": [keras.metrics.BinaryAccuracy(threshold=0.9)]}
    (support_x, support_y), (query_x, query_y) = episodes()
    batch = (
        (support_x, (support_y, tf.ones_like(support_y))),
        (query_x, (query_y, tf.ones_like(query_y))),
    )
    logs = fit(learner_of(two_outputs(), metrics=metrics), batch)
    assert {"a_mae", "a_mae_before", "b_binary_accuracy", "b_binary_accuracy_before"} <= set(logs)


class AboveThreshold(keras.metrics.Metric):
    """A metric whose configuration lacks its argument."""

    def __init__(self, threshold=0.0, name="above", **options):
        super().__init__(name=name, **options)
        self.threshold = threshold
        self.count = self.add_weight(initializer="zeros", name="count")

    def update_state(self, y_true, y_pred, sample_weight=None):
        above = tf.cast(y_pred > self.threshold, tf.float32)
        self.count.assign_add(tf.reduce_sum(above))

    def result(self):
        return self.count.value


def test_the_twin_of_a_metric_before_adaptation_keeps_its_settings():
    batch = episodes()
    learner = learner_of(metrics=[AboveThreshold(-100.0)], optimizer=keras.optimizers.SGD(0.0))
    logs = fit(learner, batch, epochs=2)
    assert logs["above"] == logs["above_before"] == [6.0, 6.0]  # examples of a task


def test_an_adapted_model_measures_with_the_settings_of_the_learner():
    learner = learner_of(metrics=[keras.metrics.CosineSimilarity(axis=0)])
    support, query = (first(each) for each in episodes())
    adapted = learner.adapt(support)
    expected = keras.metrics.CosineSimilarity(axis=0)
    expected.update_state(query[1], adapted(query[0]))
    found = adapted.evaluate(*query, verbose=0, return_dict=True)
    np.testing.assert_allclose(found["cosine_similarity"], expected.result(), rtol=1e-5)


def test_an_adapted_model_measures_by_metrics_whose_configuration_lacks_something():
    learner = learner_of(metrics=[AboveThreshold(0.1)])
    support, query = (first(each) for each in episodes())
    adapted = learner.adapt(support)
    expected = np.sum(adapted(query[0]) > 0.1)
    assert 0 < expected < 6
    for _ in range(2):  # each evaluation by itself
        assert adapted.evaluate(*query, verbose=0, return_dict=True)["above"] == expected


def test_one_algorithm_for_two_sizes_of_rates_is_refused():
    model, algorithm = network(LAYERS.Dense(4)), amaml.algorithms.MetaSGD(0.05, 2)
    learner_of(model, algorithm=algorithm)
    model.layers[0].trainable = False
    with pytest.raises(amaml.UsageError, match="make a new algorithm for another model"):
        learner_of(model, algorithm=algorithm)


def test_support_sets_of_any_size_share_a_program():
    traced = []

    def loss(y_true, y_pred):
        traced.append(y_pred.shape)
        return tf.square(y_true - y_pred)

    learner = learner_of(loss=loss)
    counts = []
    for count in range(3, 13):
        learner.adapt(first(examples(count=count)))
        counts.append(len(traced))
    assert counts[1] == counts[-1]  # once more for all sizes, as soon as there are two


def test_many_tasks_are_adapted_at_once():
    learner, (support, _) = learner_of(network(LAYERS.Dense(2))), episodes(3)
    many = learner.adapt_many(support)
    for task in range(3):
        one = learner.adapt(tf.nest.map_structure(lambda v, task=task: v[task], support))
        for values, expected in zip(many, one.trainable_variables, strict=True):
            np.testing.assert_allclose(values[task], expected, rtol=1e-5, atol=1e-6)


def test_meta_gradients_inside_of_a_users_own_xla():
    learner, batch = learner_of(), episodes()
    compiled = tf.function(learner.meta_gradients, jit_compile=True)
    expected = learner.meta_gradients(batch)
    for one, other in zip(compiled(batch).gradients, expected.gradients, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-6)
    (support_x, support_y), query = batch
    bad = support_y.numpy()
    bad[1] = np.nan
    result = compiled(((support_x, tf.constant(bad)), query))
    np.testing.assert_array_equal(result.diagnostics.forward.status < 0, [False, True])
    np.testing.assert_array_equal(np.isnan(result.losses), [False, True])


class OwnLoss(keras.Model):
    """Computes its loss in its own way, as `fit` of Keras has it."""

    def __init__(self):
        super().__init__()
        self.dense = LAYERS.Dense(1)

    def call(self, x):
        return self.dense(x)

    def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None, training=True):
        return 10 * super().compute_loss(x, y, y_pred, sample_weight, training)


class OwnMetrics(amaml.MetaLearner):
    def compute_metrics(self, x, y, y_pred, sample_weight=None):
        return {}


def test_losses_and_metrics_of_a_models_own_are_refused():
    model = OwnLoss()
    model(tf.zeros((1, 3)))
    with pytest.raises(amaml.UsageError, match=r"to have compute_loss of keras\.Model, got one of"):
        learner_of(model)
    with pytest.raises(amaml.UsageError, match=r"to have compute_metrics of keras\.Model, got one"):
        OwnMetrics(network())


class Doubling(keras.optimizers.SGD):
    """Changes gradients where `Model.fit` of Keras hands them over."""

    def apply_gradients(self, grads_and_vars):
        return super().apply_gradients([(2 * grad, variable) for grad, variable in grads_and_vars])


def test_an_optimizer_is_called_as_fit_of_keras_does():
    learner = learner_of(optimizer=Doubling(0.5))
    expected = learner.meta_gradients(episodes()).gradients
    before = [v.numpy() for v in learner.model.trainable_variables]
    fit(learner, episodes())
    for value, old, gradient in zip(
        learner.model.trainable_variables, before, expected, strict=True
    ):
        np.testing.assert_allclose(value, old - gradient, rtol=1e-5, atol=1e-6)


class OneAndTwo(keras.metrics.Mean):
    """A metric with several results, which have names of their own."""

    def update_state(self, y_true, y_pred, sample_weight=None):
        return super().update_state(y_pred)

    def result(self):
        return {"one": super().result(), "two": 2 * super().result()}


def test_metrics_with_several_values():
    (x, y), _ = episodes()
    batch = (x, tf.cast(y > 0, tf.float32))
    learner = learner_of(metrics=[OneAndTwo(), keras.metrics.F1Score(threshold=0.5)])
    logs = fit(learner, (batch, batch))
    np.testing.assert_allclose(logs["two"], 2 * np.array(logs["one"]), rtol=1e-6)
    assert np.shape(logs["f1_score"]) == (1, 1)  # epochs, classes


@pytest.mark.long
def test_a_known_number_of_tasks_after_an_unknown_one():
    flow = amaml.GradientFlow(final_time=0.2)
    algorithm = amaml.algorithms.AdjointMAML(flow)
    options = {"vectorize": "off", "jit_compile": "off"}
    learner = learner_of(algorithm=algorithm, **options)
    expected = learner.meta_gradients(episodes(3)).gradients
    learner.compile(keras.optimizers.SGD(0.0), "mse", **options)
    data = tf.data.Dataset.from_tensors(episodes(2)).unbatch().batch(2)
    assert data.element_spec[0][0].shape[0] is None
    learner.fit(data, verbose=0)
    for one, other in zip(learner.meta_gradients(episodes(3)).gradients, expected, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6)


def frozen(model):
    model.layers[0].trainable = False


@pytest.mark.parametrize(
    "change", [frozen, lambda model: model.add(LAYERS.Dense(1))], ids=["frozen", "added"]
)
def test_other_trainable_layers_than_compiled_are_refused(change):
    learner = learner_of(network(LAYERS.Dense(2)))
    change(learner.model)
    with pytest.raises(amaml.UsageError, match=r"as when it was compiled, got .*; call compile"):
        learner.meta_gradients(episodes())
