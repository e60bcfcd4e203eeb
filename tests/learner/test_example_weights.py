"""Weights of examples: those of Keras, and an example of weight 0 counts nowhere."""

import keras
import numpy as np
import problems
import pytest
import tensorflow as tf

import amaml_tf as amaml

LAYERS = keras.layers
D = {"dtype": "float64"}


def embedding():
    """A network on padded tokens, whose pooling leaves masked steps out."""
    keras.utils.set_random_seed(0)
    model = keras.Sequential(
        [
            keras.Input((4,), dtype="int32"),
            LAYERS.Embedding(6, 3, mask_zero=True, **D),
            LAYERS.GlobalAveragePooling1D(**D),
            LAYERS.Dense(4, "tanh", **D),
            LAYERS.Dense(1, **D),
        ]
    )
    rng = np.random.default_rng(1)

    def points(count):
        x = rng.integers(1, 6, (2, count, 4)) * (np.arange(4) < rng.integers(1, 5, (2, count, 1)))
        return tf.constant(x, tf.int32), tf.constant(rng.normal(size=(2, count, 1)))

    return problems.Problem(model, "mse", (points(6), points(5)))


PROBLEMS = {
    "dense": lambda: problems.dense(num_tasks=2),
    "convolutional": problems.convolutional,
    "embedding": embedding,
}


def weighted(problem, seed=0):
    """The episodes with random weights, two of each task's support set 0, and one of its query."""
    rng = np.random.default_rng(seed)

    def one(examples, zeros):
        x, y = examples
        weight = rng.uniform(0.5, 2, y.shape[:2])
        for task, row in enumerate(weight):
            row[rng.permutation(len(row))[: zeros + task]] = 0
        return x, y, tf.constant(weight)

    return one(problem.episodes[0], 2), one(problem.episodes[1], 1)


def rows(examples, task, kept):
    return tf.nest.map_structure(lambda v: tf.boolean_mask(v[task], kept), examples)


def of_task(episodes, task):
    """The episode of a task without its examples of weight 0."""
    return tuple(rows(each, task, each[2][task] != 0) for each in episodes)


def learner_of(problem, algorithm=None, loss=None, optimizer="sgd", **options):
    learner = amaml.MetaLearner(problem.model, algorithm or amaml.algorithms.MAML(0.1, 3))
    learner.compile(optimizer, loss=loss or problem.loss, **{"jit_compile": "off", **options})
    return learner


def unrolled(problem, episodes, step_size=0.1, num_steps=3):
    """The mean meta-gradient of the tasks without padding, by a plain unrolled program."""
    function = problem.function()
    state, parameters = function.state(), problem.parameters
    losses = keras.losses.get(problem.loss)

    def loss_of(u, examples, adapting):
        x, y, weight = examples
        outputs, _ = function.predict(u, state, x, adapting)
        return tf.reduce_mean(weight * losses(y, outputs))

    gradients = []
    for task in range(2):
        support, query = of_task(episodes, task)
        with tf.GradientTape() as tape:
            tape.watch(parameters)
            u = parameters
            for _ in range(num_steps):
                with tf.GradientTape() as inner:
                    inner.watch(u)
                    loss = loss_of(u, support, adapting=True)
                slopes = inner.gradient(loss, u)
                u = [
                    w - step_size * tf.convert_to_tensor(s) for w, s in zip(u, slopes, strict=True)
                ]
            loss = loss_of(u, query, adapting=False)
        gradients.append([tf.convert_to_tensor(g).numpy() for g in tape.gradient(loss, parameters)])
    return [np.mean(column, axis=0) for column in zip(*gradients, strict=True)]


@pytest.mark.parametrize("name", PROBLEMS)
def test_weighted_meta_gradients_match_the_unrolled_program_without_padding(name):
    problem = PROBLEMS[name]()
    episodes = weighted(problem)
    found = learner_of(problem).meta_gradients(episodes).gradients
    assert problems.relative_error(found, unrolled(problem, episodes)) < 1e-12


def with_rubbish(examples):
    """The examples with something else in place of those of weight 0."""
    x, y, weight = (v.numpy().copy() for v in examples)
    x[weight == 0] = np.nan if x.dtype.kind == "f" else 12345
    y[weight == 0] = np.nan if y.dtype.kind == "f" else 77
    return tuple(map(tf.constant, (x, y, weight)))


@pytest.mark.parametrize("vectorize", ["on", "off"])
@pytest.mark.parametrize("name", PROBLEMS)
def test_an_example_of_weight_0_changes_no_bit(name, vectorize):
    problem = PROBLEMS[name]()
    flow = amaml.GradientFlow(final_time=0.3, solver=amaml.solvers.RungeKuttaChebyshev(rtol=1e-2))
    metric = "mae" if problem.loss == "mse" else "sparse_categorical_accuracy"
    learner = learner_of(
        problem,
        amaml.algorithms.AdjointMAML(flow),
        vectorize=vectorize,
        metrics=[metric],
        weighted_metrics=[metric],
        optimizer=keras.optimizers.SGD(0.0),
    )
    clean = weighted(problem)
    poisoned = tuple(map(with_rubbish, clean))
    one, other = learner.meta_gradients(clean), learner.meta_gradients(poisoned)
    np.testing.assert_array_equal(one.losses, other.losses)
    for expected, found in zip(one.gradients, other.gradients, strict=True):
        np.testing.assert_array_equal(found, expected)
    logs = [
        learner.evaluate(tf.data.Dataset.from_tensors(each), verbose=0, return_dict=True)
        for each in (clean, poisoned)
    ]
    assert logs[0] == logs[1]
    assert np.all(np.isfinite(list(logs[0].values())))


@pytest.mark.long
@pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16"])
def test_an_example_of_weight_0_changes_no_bit_in_mixed_precision(policy):
    keras.utils.set_random_seed(0)
    layers = (LAYERS.Dense(4, dtype=policy), LAYERS.BatchNormalization(dtype=policy))
    model = keras.Sequential([keras.Input((2,)), *layers, LAYERS.Dense(1, dtype=policy)])
    problem = problems.dense(num_tasks=2, dtype="float32")._replace(model=model)
    learner = learner_of(problem, vectorize="off")
    clean = tf.nest.map_structure(lambda v: tf.cast(v, tf.float32), weighted(problem))
    one, other = (learner.meta_gradients(each) for each in (clean, tuple(map(with_rubbish, clean))))
    for expected, found in zip(one.gradients, other.gradients, strict=True):
        np.testing.assert_array_equal(found, expected)
        assert np.all(np.isfinite(found))


@pytest.mark.parametrize("place", [0, 1], ids=["support", "query"])
def test_a_task_without_an_example_that_counts_fails(place):
    """Its loss would be 0, which would make the mean over tasks too good."""
    problem = problems.dense(num_tasks=2)
    episodes = list(weighted(problem))
    x, y, weight = episodes[place]
    episodes[place] = x, y, weight * [[1.0], [0.0]]
    learner = learner_of(problem, vectorize="off", on_failure="drop")
    found = learner.meta_gradients(tuple(episodes))
    alone = learner.meta_gradients(tf.nest.map_structure(lambda v: v[:1], tuple(episodes)))
    assert int(found.diagnostics.num_dropped_tasks) == 1
    np.testing.assert_allclose(found.loss, alone.loss)
    for value, expected in zip(found.gradients, alone.gradients, strict=True):
        np.testing.assert_allclose(value, expected)
    learner.on_failure = "raise"
    with pytest.raises(amaml.AdaptationError, match="weights that are all 0"):
        learner.predict_episodes(tuple(episodes)) if place == 0 else learner.train_on_batch(
            tuple(episodes)
        )


@pytest.mark.parametrize("name", PROBLEMS)
def test_a_padded_batch_is_its_tasks_one_by_one(name):
    problem = PROBLEMS[name]()
    episodes = weighted(problem)
    learner = learner_of(problem)
    batch = learner.meta_gradients(episodes)
    alone = [
        learner.meta_gradients(
            tf.nest.map_structure(lambda v: v[tf.newaxis], of_task(episodes, task))
        )
        for task in range(2)
    ]
    np.testing.assert_allclose(batch.losses, [each.loss for each in alone], rtol=1e-12)
    for found, *parts in zip(batch.gradients, *(each.gradients for each in alone), strict=True):
        np.testing.assert_allclose(found, np.mean(parts, axis=0), rtol=1e-8, atol=1e-12)


@pytest.mark.parametrize(
    "loss",
    [
        "mse",
        keras.losses.Huber(reduction="sum"),
        keras.losses.MeanAbsoluteError(reduction="mean_with_sample_weight"),
        "dice",
        lambda y_true, y_pred: tf.square(y_true - y_pred),
    ],
    ids=["mse", "sum", "mean_with_sample_weight", "dice", "own"],
)
def test_losses_and_weighted_metrics_are_those_of_keras(loss):
    problem = problems.dense(num_tasks=2, dtype="float32")
    rng = np.random.default_rng(3)
    support, (x, y) = problem.episodes
    weight = tf.constant(rng.uniform(0.5, 2, y.shape[:2]), tf.float32)
    learner = learner_of(
        problem, loss=loss, metrics=["mae"], weighted_metrics=[keras.metrics.MeanSquaredError()]
    )
    found = learner.predict_episodes((support, (x, y, weight))).before[0]
    logs = learner.evaluate(
        tf.data.Dataset.from_tensors((support, (x, y, weight))), verbose=0, return_dict=True
    )
    problem.model.compile(
        loss=loss, metrics=["mae"], weighted_metrics=[keras.metrics.MeanSquaredError()]
    )
    expected = [
        problem.model.evaluate(
            x[task], y[task], sample_weight=weight[task], verbose=0, return_dict=True
        )
        for task in range(2)
    ]
    np.testing.assert_allclose(found, [each["loss"] for each in expected], rtol=1e-5)
    for name in ("mae", "mean_squared_error"):
        mean = np.mean([each[name] for each in expected])
        np.testing.assert_allclose(logs[f"{name}_before"], mean, rtol=1e-5)


def test_steps_of_sequences_have_weights():
    keras.utils.set_random_seed(0)
    model = keras.Sequential([keras.Input((4, 2)), LAYERS.Dense(3, "tanh"), LAYERS.Dense(1)])
    rng = np.random.default_rng(0)
    x, y = (tf.constant(rng.normal(size=(2, 5, 4, size)), tf.float32) for size in (2, 1))
    weight = tf.constant(rng.uniform(0.5, 2, (2, 5, 4)), tf.float32)
    learner = learner_of(problems.Problem(model, "mse", None))
    steps = learner.predict_episodes(((x, y), (x, y, weight))).before[0]
    model.compile(loss="mse")
    expected = model.evaluate(x[0], y[0], sample_weight=weight[0], verbose=0)
    np.testing.assert_allclose(steps[0], expected, rtol=1e-5)
    of_examples = learner.predict_episodes(((x, y), (x, y, weight[..., 0]))).before[0]
    expected = np.mean(weight[0, :, 0] * np.mean(np.square(model(x[0]) - y[0]), axis=(1, 2)))
    np.testing.assert_allclose(of_examples[0], expected, rtol=1e-5)


def test_outputs_have_weights_of_their_own():
    keras.utils.set_random_seed(0)
    inputs = keras.Input((3,))
    model = keras.Model(inputs, {name: LAYERS.Dense(1, name=name)(inputs) for name in "ab"})
    rng = np.random.default_rng(0)
    x, y = (rng.normal(size=(2, 5, size)).astype("float32") for size in (3, 1))
    weights = {name: rng.uniform(0.5, 2, (2, 5)).astype("float32") for name in "ab"}
    weights["a"][:, 0] = 0
    of_a = np.where(weights["a"][..., None] == 0, np.nan, y).astype("float32")
    targets = {"a": of_a, "b": -y}
    learner = learner_of(problems.Problem(model, "", None), loss={"a": "mse", "b": "mae"})
    found = learner.predict_episodes(((x, targets, weights), (x, targets, weights))).before[0]
    outputs = model(x[0])
    loss_a = weights["a"][0, 1:] * np.square(targets["a"] - outputs["a"])[0, 1:, 0]
    loss_b = weights["b"][0] * np.abs(targets["b"][0] - outputs["b"])[:, 0]
    np.testing.assert_allclose(found[0], np.mean(loss_a) + np.mean(loss_b), rtol=1e-5)


def test_an_adapted_model_and_the_others_leave_padding_out():
    problem = problems.convolutional()
    episodes = weighted(problem)
    learner = learner_of(problem)
    padded = learner.adapt(tuple(v[0] for v in episodes[0]))
    plain = learner.adapt(of_task(episodes, 0)[0])
    for found, expected in zip(padded.weights, plain.weights, strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-10, atol=1e-12)
    many = learner.adapt_many(episodes[0])
    for found, expected in zip(many, plain.trainable_weights, strict=True):
        np.testing.assert_allclose(found[0], expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("sets", [(0,), (1,), (0, 1)], ids=["support", "query", "both"])
def test_joint_training_takes_weights(sets):
    problem = problems.dense(num_tasks=2)
    episodes = [
        full if number in sets else full[:2] for number, full in enumerate(weighted(problem))
    ]
    learner = learner_of(problem, amaml.algorithms.JointTraining())
    gradients = learner.meta_gradients(tuple(episodes)).gradients
    parameters = problem.parameters
    expected = []
    for task in range(2):
        with tf.GradientTape() as tape:
            tape.watch(parameters)
            total, count = 0.0, 0
            for x, y, *weight in episodes:
                weight = weight[0][task] if weight else tf.ones_like(y[task, :, 0])
                outputs = problem.model.stateless_call(parameters, [], x[task])[0]
                total += tf.reduce_sum(weight * keras.losses.mean_squared_error(y[task], outputs))
                count += int(np.count_nonzero(weight))
            loss = total / count
        expected.append([g.numpy() for g in tape.gradient(loss, parameters)])
    for found, *parts in zip(gradients, *expected, strict=True):
        np.testing.assert_allclose(found, np.mean(parts, axis=0), rtol=1e-10, atol=1e-14)


def test_an_evaluation_leaves_padding_out():
    problem = problems.dense(num_tasks=2)
    episodes = weighted(problem)
    learner = learner_of(problem)
    poisoned = tuple(map(with_rubbish, episodes))
    results = []
    for batch in (episodes, poisoned):
        results.append(
            amaml.evaluate(learner, [batch], 2, [keras.metrics.MeanAbsoluteError(name="mae")])
        )
        tuned = amaml.evaluate(learner, [batch], 2, optimizer=keras.optimizers.SGD(0.1), steps=[3])
        assert tuned.after["loss"].mean == pytest.approx(results[-1].after["loss"].mean, rel=1e-6)
    assert results[0].after["mae"] == results[1].after["mae"]
    query = of_task(episodes, 0)[1]
    expected = np.mean(np.abs(problem.model(query[0]) - query[1]))
    np.testing.assert_allclose(results[0].curve[0].values["mae"][0], expected, rtol=1e-5)


def test_what_no_weight_reaches_is_refused():
    problem = problems.dense(num_tasks=2, dtype="float32")
    episodes = weighted(problem)
    model = keras.Sequential(
        [keras.Input((2,)), LAYERS.Dense(2, activity_regularizer="l2"), LAYERS.Dense(1)]
    )
    learner = learner_of(problem._replace(model=model))
    with pytest.raises(amaml.UsageError, match="Expected no activity regularizers"):
        learner.meta_gradients(tf.nest.map_structure(lambda v: tf.cast(v, tf.float32), episodes))


def test_a_loss_over_all_examples_leaves_none_out():
    problem = problems.dense(num_tasks=2)
    episodes = weighted(problem)
    mean = learner_of(problem, loss=lambda y, outputs: tf.reduce_mean(tf.square(y - outputs)))
    with pytest.raises(amaml.AdaptationError, match="weight 0"):
        mean.meta_gradients(episodes)
    dice = learner_of(problem, loss="dice")
    alone = tf.nest.map_structure(lambda v: v[tf.newaxis], of_task(episodes, 0))
    np.testing.assert_allclose(
        dice.predict_episodes(episodes).after[0][0], dice.predict_episodes(alone).after[0][0]
    )


@pytest.mark.parametrize(
    ("part", "message"),
    [
        (0, "Expected the same number of examples in all arrays of the support set"),
        (2, "Expected the same number of examples in all arrays of the support set"),
    ],
)
def test_arrays_of_different_lengths_are_refused(part, message):
    problem = problems.dense(num_tasks=2)
    support, query = weighted(problem)
    support = [v[:, :4] if number == part else v for number, v in enumerate(support)]
    with pytest.raises(amaml.UsageError, match=message):
        learner_of(problem).meta_gradients((support, query))
    with pytest.raises(amaml.UsageError, match=message):
        learner_of(problem).adapt([v[0] for v in support])
