"""Further cases of the kinds in which a learner once did not do what Keras does."""

from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

import amaml_tf as amaml

LAYERS = keras.layers
OPTIMIZERS = keras.optimizers
CALLBACKS = keras.callbacks


def examples(rng, num_tasks=2, count=6, width=3):
    x, y = rng.normal(size=(num_tasks, count, width)), rng.normal(size=(num_tasks, count, 1))
    return tf.constant(x, tf.float32), tf.constant(y, tf.float32)


def episodes(**sizes):
    rng = np.random.default_rng(0)
    return examples(rng, **sizes), examples(rng, **sizes)


def first(values, task=0):
    return tf.nest.map_structure(lambda value: value[task], values)


def network(*layers, outputs=1):
    keras.utils.set_random_seed(0)
    return keras.Sequential([keras.Input((3,)), *layers, LAYERS.Dense(outputs)])


def learner_of(model=None, loss="mse", optimizer="sgd", **options):
    learner = amaml.MetaLearner(model or network(), amaml.algorithms.MAML(0.05, 2))
    options = {"vectorize": "off", "jit_compile": "off", **options}
    learner.compile(optimizer, loss=loss, **options)
    return learner


@pytest.fixture(scope="module")
def shared():
    """One learner for many optimizers and callbacks, because to trace it takes seconds."""
    rmse = keras.metrics.RootMeanSquaredError(name="rmse")
    learner = learner_of(metrics=[rmse])
    start = [v.numpy() for v in learner.model.weights]

    def fresh(optimizer):
        for variable, value in zip(learner.model.weights, start, strict=True):
            variable.assign(value)
        learner.optimizer = optimizer
        learner.train_function = None
        return learner

    return fresh


def excluding(optimizer, name):
    optimizer.exclude_from_weight_decay(var_names=[name])
    return optimizer


SCHEDULES = OPTIMIZERS.schedules
STEPS = {
    "clipnorm": lambda: OPTIMIZERS.SGD(0.5, clipnorm=0.01),
    "global_clipnorm": lambda: OPTIMIZERS.Adam(0.1, global_clipnorm=0.01),
    "clipvalue": lambda: OPTIMIZERS.RMSprop(0.1, clipvalue=0.001),
    "accumulation": lambda: OPTIMIZERS.Adam(0.1, gradient_accumulation_steps=2),
    "weight decay": lambda: excluding(OPTIMIZERS.AdamW(0.1, weight_decay=0.2), "bias"),
    "a schedule": lambda: OPTIMIZERS.SGD(
        SCHEDULES.PiecewiseConstantDecay([1, 2], [0.5, 0.1, 0.02])
    ),
    "EMA that overwrites": lambda: OPTIMIZERS.SGD(0.1, use_ema=True, ema_overwrite_frequency=2),
    "scaled and clipped": lambda: OPTIMIZERS.LossScaleOptimizer(
        OPTIMIZERS.Adam(0.1, clipnorm=0.01), initial_scale=2.0**20
    ),
    "scaled and accumulated": lambda: OPTIMIZERS.Adam(
        0.1, loss_scale_factor=128.0, gradient_accumulation_steps=2
    ),
}


@pytest.mark.long
@pytest.mark.parametrize("which", STEPS)
def test_meta_steps_are_those_of_the_optimizer(shared, which):
    learner, reference = shared(STEPS[which]()), STEPS[which]()
    expected = [keras.Variable(v.numpy(), name=v.name) for v in learner.model.trainable_variables]
    reference.build(expected)
    for _ in range(4):
        gradients = learner.meta_gradients(episodes()).gradients
        reference.apply([reference.scale_loss(each) for each in gradients], expected)
        learner.train_on_batch(*episodes())
    assert learner.optimizer.iterations == reference.iterations
    for found, value in zip(learner.model.trainable_variables, expected, strict=True):
        np.testing.assert_allclose(found, value, rtol=1e-5, atol=1e-7)


CALLED = {
    "ReduceLROnPlateau": lambda path: CALLBACKS.ReduceLROnPlateau("loss", 0.1, 1, min_delta=9),
    "LearningRateScheduler": lambda path: CALLBACKS.LearningRateScheduler(lambda _, rate: rate / 2),
    "TensorBoard": lambda path: CALLBACKS.TensorBoard(path, histogram_freq=1, update_freq=1),
    "CSVLogger": lambda path: CALLBACKS.CSVLogger(path / "log.csv"),
    "TerminateOnNaN": lambda path: CALLBACKS.TerminateOnNaN(),
    "BackupAndRestore": lambda path: CALLBACKS.BackupAndRestore(path / "backup"),
    "EarlyStopping": lambda path: CALLBACKS.EarlyStopping(
        "val_rmse", 9, patience=1, mode="min", restore_best_weights=True
    ),
    "SwapEMAWeights": lambda path: CALLBACKS.SwapEMAWeights(swap_on_epoch=True),
}
EPOCHS = {"EarlyStopping": 2}
RATES = {"LearningRateScheduler": 0.1 / 2**3, "ReduceLROnPlateau": 0.1 * 0.1**2}


@pytest.mark.long
@pytest.mark.parametrize("name", CALLED)
def test_callbacks(shared, name, tmp_path):
    learner = shared(OPTIMIZERS.SGD(0.1, use_ema=name == "SwapEMAWeights"))
    data = tf.data.Dataset.from_tensors(episodes())
    history = learner.fit(
        data, validation_data=data, epochs=3, verbose=0, callbacks=[CALLED[name](tmp_path)]
    )
    assert len(history.history["val_rmse"]) == EPOCHS.get(name, 3)
    np.testing.assert_allclose(learner.optimizer.learning_rate, RATES.get(name, 0.1), rtol=1e-5)
    if name in ("TensorBoard", "CSVLogger"):
        assert any(tmp_path.iterdir())


@pytest.mark.long
@pytest.mark.parametrize(
    "options",
    [{"steps_per_execution": 2}, {"run_eagerly": True}],
    ids=str,
)
def test_options_of_compile_change_no_number(shared, options):
    data = tf.data.Dataset.from_tensors(episodes()).repeat(2)
    expected, found = (
        learner.fit(data, epochs=2, initial_epoch=1, verbose=0)
        for learner in (shared(OPTIMIZERS.SGD(0.01)), learner_of(**options))
    )
    assert found.epoch == [1]
    np.testing.assert_allclose(found.history["loss"], expected.history["loss"], rtol=1e-5)


@pytest.mark.long
def test_episodes_are_given_in_every_way_that_keras_has(shared):
    batch = episodes()
    ways = (
        lambda learner: learner.train_on_batch(*batch, return_dict=True),
        lambda learner: learner.train_on_batch(batch, return_dict=True),
        lambda learner: learner.test_on_batch(*batch, return_dict=True),
        lambda learner: _last(learner.fit(*tf.nest.map_structure(np.asarray, batch), verbose=0)),
        lambda learner: _last(learner.fit(_endless(batch), steps_per_epoch=1, verbose=0)),
    )
    losses = [give(shared(OPTIMIZERS.SGD(0.0)))["loss"] for give in ways]
    np.testing.assert_allclose(losses, losses[0], rtol=1e-6)


def test_the_values_of_evaluate_have_the_names_that_keras_has_for_them(shared):
    learner, data = shared(keras.optimizers.SGD(0.0)), tf.data.Dataset.from_tensors(episodes())
    named = learner.evaluate(data, verbose=0, return_dict=True)
    listed = learner.evaluate(data, verbose=0)
    assert dict(zip(learner.metrics_names, listed, strict=True)) == named


def _last(history):
    return {name: values[-1] for name, values in history.history.items()}


def _endless(batch):
    while True:
        yield batch


@pytest.mark.parametrize("name", ["class_weight", "sample_weight"])
def test_weights_beside_the_episodes_are_refused(shared, name):
    learner, weights = shared("sgd"), {0: 1.0} if name == "class_weight" else np.ones(2)
    for call in (
        lambda: learner.fit(tf.data.Dataset.from_tensors(episodes()), **{name: weights}),
        lambda: learner.train_on_batch(*episodes(), **{name: weights}),
    ):
        with pytest.raises(amaml.UsageError, match=f"Expected weights inside .* got {name}; give"):
            call()


@pytest.mark.parametrize(
    "make",
    [
        lambda x: tf.RaggedTensor.from_tensor(x),
        lambda x: tf.RaggedTensor.from_row_lengths(tf.reshape(x, (12, 3)), [4, 8]),
        tf.sparse.from_dense,
    ],
    ids=["ragged", "ragged tasks", "sparse"],
)
def test_episodes_that_are_not_dense_are_refused(shared, make):
    learner, ((x, y), query) = shared(keras.optimizers.SGD()), episodes()
    data = tf.data.Dataset.from_tensors(((make(x), y), query))
    for call in (
        lambda: learner.fit(data, verbose=0),
        lambda: learner.meta_gradients(((make(x), y), query)),
        lambda: learner.adapt((make(x), y)),
    ):
        with pytest.raises(amaml.UsageError, match=r"Expected dense tensors, got a .*Tensor; pad"):
            call()


class Signature(keras.Model):
    """A subclassed model, with `call` as the subclass has it."""

    def __init__(self, **options):
        super().__init__(**options)
        self.dense, self.dropout = LAYERS.Dense(1), LAYERS.Dropout(0.5)


class WithMask(Signature):
    def call(self, inputs, training=False, mask=None):
        return self.dense(self.dropout(inputs, training=training))


class KeywordOnly(Signature):
    def call(self, inputs, *, training=None):
        return self.dense(self.dropout(inputs, training=training))


class WithOptions(Signature):
    def call(self, inputs, scale=2.0, **options):
        return self.dense(inputs) * scale


class WithLosses(Signature):
    def call(self, x):
        outputs = self.dense(x)
        self.add_loss(tf.square(tf.reduce_mean(outputs)))
        return outputs


def subclassed(kind):
    keras.utils.set_random_seed(0)
    model = kind()
    model(tf.zeros((1, 3)))
    return model


def functional():
    keras.utils.set_random_seed(0)
    inner = keras.Sequential([keras.Input((3,)), LAYERS.Dense(3, "tanh")])
    outer_inputs = keras.Input((3,))
    outer = keras.Model(outer_inputs, LAYERS.Dense(3)(inner(outer_inputs)))
    inputs, twice = keras.Input((3,)), LAYERS.Dense(3)
    return keras.Model(inputs, LAYERS.Dense(1)(twice(twice(outer(inputs)))))


def frozen():
    model = network(LAYERS.Dense(4), LAYERS.BatchNormalization())
    model.layers[0].trainable = model.layers[1].trainable = False
    return model


MODELS = {
    "call with a mask": lambda: subclassed(WithMask),
    "keyword only": lambda: subclassed(KeywordOnly),
    "further options": lambda: subclassed(WithOptions),
    "add_loss": lambda: subclassed(WithLosses),
    "nested and shared": functional,
    "frozen parts": frozen,
    "regularizers": lambda: network(
        LAYERS.Dense(2, kernel_regularizer="l2", bias_regularizer="l1")
    ),
    "activity": lambda: network(LAYERS.Dense(2, activity_regularizer="l2")),
}


@pytest.mark.long
@pytest.mark.parametrize("which", MODELS)
def test_a_model_has_the_loss_that_keras_has_and_its_copy_predicts_the_same(which):
    model, (support, query) = MODELS[which](), episodes()
    learner = learner_of(model)
    predictions = learner.predict_episodes((support, query))
    model.compile(loss="mse")
    for task in range(2):
        expected = model.evaluate(*first(query, task), verbose=0)
        np.testing.assert_allclose(predictions.before[0][task], expected, rtol=1e-5)
    copy = learner.adapt(first(support))
    expected = predictions.after[1][0]
    np.testing.assert_allclose(copy(query[0][0]), expected, rtol=1e-4, atol=1e-5)


def of_outputs(structure):
    keras.utils.set_random_seed(0)
    inputs = keras.Input((3,))
    names = iter("abc")
    outputs = keras.tree.map_structure(
        lambda _: LAYERS.Dense(1, "softplus", name=next(names))(inputs), structure
    )
    return keras.Model(inputs, outputs)


PAIR = {"a": "mse", "b": "poisson"}
OUTPUTS: dict[str, tuple[Any, dict[str, Any]]] = {
    "nested losses": ({"a": 0, "b": [0, 0]}, {"loss": {"a": "mse", "b": ["mae", "log_cosh"]}}),
    "dict": ({"a": 0, "b": 0}, {"loss": PAIR, "loss_weights": {"a": 2.0, "b": 0.5}}),
    "one for all": ({"a": 0, "b": 0}, {"loss": "huber"}),
    "a list": ([0, 0], {"loss": ["mse", "poisson"], "loss_weights": [0.5, 3.0]}),
    "one of a list": ([0, 0], {"loss": [None, "mae"]}),
}


@pytest.mark.long
@pytest.mark.parametrize("which", OUTPUTS)
def test_losses_of_several_outputs_are_those_of_keras(which):
    structure, options = OUTPUTS[which]
    model, ((support_x, support_y), (query_x, query_y)) = of_outputs(structure), episodes()
    targets = [
        keras.tree.map_structure(lambda n, y=y: tf.abs(y) + n, structure)
        for y in (support_y, query_y)
    ]
    batch = (support_x, targets[0]), (query_x, targets[1])
    learner = learner_of(model, **options)
    found = learner.predict_episodes(batch).before[0]
    assert np.isfinite(learner.train_on_batch(batch)[0])
    model = of_outputs(structure)
    model.compile(**options)
    for task in range(2):
        expected = model.evaluate(query_x[task], first(targets[1], task), verbose=0)
        np.testing.assert_allclose(found[task], np.ravel(expected)[0], rtol=1e-5)


@pytest.mark.long
@pytest.mark.parametrize("labels", ["[n]", "[n, 1]", "one-hot", "binary"])
def test_crossentropy_and_accuracy_are_chosen_by_the_labels(labels):
    (x, y), _ = episodes()
    classes = tf.cast(tf.abs(y[..., 0]) * 3, tf.int32) % 3
    given = {
        "[n]": classes,
        "[n, 1]": classes[..., tf.newaxis],
        "one-hot": tf.one_hot(classes, 3),
        "binary": classes[..., tf.newaxis] % 2,
    }[labels]
    outputs = 1 if labels == "binary" else 3
    model = network(outputs=outputs)
    model.add(LAYERS.Activation("sigmoid" if labels == "binary" else "softmax"))
    learner = learner_of(model, "crossentropy", OPTIMIZERS.SGD(0.0), metrics=["accuracy"])
    found = learner.train_on_batch(((x, given), (x, given)), return_dict=True)
    model.compile(loss="crossentropy", metrics=["accuracy"])
    of_tasks = [
        model.evaluate(x[task], given[task], verbose=0, return_dict=True) for task in range(2)
    ]
    for name in ("loss", "accuracy"):
        expected = np.mean([each[name] for each in of_tasks])
        np.testing.assert_allclose(found[f"{name}_before"], expected, rtol=1e-5)
