"""Training by Keras optimizers from the learned initialization, against Keras itself."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import amaml_tf as amaml
from amaml_tf.errors import AdaptationError
from amaml_tf.evaluation.fine_tuning import ELEMENTWISE, FineTuning

STEP_SIZE = 0.125  # exact in float32, in which Keras keeps it


def batch(num_tasks=3, num_support=6, dtype="float64"):
    family = amaml.tasks.SinusoidFamily(num_support=num_support, num_query=4, dtype=dtype)
    (episodes,) = family.episodes("test", batch_size=num_tasks, num_batches=1)
    return episodes


def learner_of(model, algorithm=None, on_failure="raise", jit_compile="off"):
    flow = amaml.GradientFlow(
        solver=amaml.solvers.GradientDescent(STEP_SIZE),
        final_time=1.0,
    )
    learner = amaml.MetaLearner(model, algorithm or amaml.algorithms.AdjointMAML(flow))
    learner.compile(loss="mse", jit_compile=jit_compile, on_failure=on_failure)
    return learner


def network(dtype="float64"):
    model = amaml.models.multilayer_perceptron((1,), 1, hidden_units=(5,), seed=0, dtype=dtype)
    model.trainable_variables[1].assign(np.linspace(-1, 1, 5))
    return model


@pytest.fixture(scope="module")
def learner():
    return learner_of(network())


def trained_by_keras(model, optimizer, x, y, num_steps):
    """As `fit` on the whole set, which would round the data to float32."""
    for _ in range(num_steps):
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean(tf.square(model(x) - y))
        variables = model.trainable_variables
        optimizer.apply(tape.gradient(loss, variables), variables)
    return model


def test_steps_of_sgd_are_steps_of_the_flow_of_gradient_descent(learner):
    steps = (3, 8)
    by_sgd = FineTuning(learner, keras.optimizers.SGD(STEP_SIZE)).points(batch(), steps)
    by_flow = learner.predict_along(batch(), [n * STEP_SIZE for n in steps])
    for one, other in zip(by_sgd, by_flow, strict=True):
        np.testing.assert_allclose(one.losses, other.losses, rtol=0, atol=1e-10)
        np.testing.assert_allclose(one.outputs, other.outputs, rtol=0, atol=1e-10)
        np.testing.assert_array_equal(
            one.diagnostics.num_evaluations, other.diagnostics.num_evaluations
        )


@pytest.mark.parametrize(
    "optimizer",
    [
        keras.optimizers.Adam(0.02),
        keras.optimizers.AdamW(0.02, weight_decay=0.1, clipvalue=0.05),
        keras.optimizers.SGD(keras.optimizers.schedules.CosineDecay(0.02, 20), momentum=0.9),
    ],
    ids=["adam", "adamw", "momentum"],
)
def test_tasks_are_trained_together_as_each_is_alone_by_keras(learner, optimizer):
    episodes = batch()
    *_, end = FineTuning(learner, optimizer).points(episodes, (7, 30))
    (support_x, support_y), (query_x, _) = episodes
    for task in range(3):
        alone = type(optimizer).from_config(optimizer.get_config())
        model = trained_by_keras(network(), alone, support_x[task], support_y[task], 30)
        np.testing.assert_allclose(end.outputs[task], model(query_x[task]), rtol=0, atol=1e-6)


@pytest.mark.parametrize("kind", ELEMENTWISE, ids=lambda kind: kind.__name__)
def test_what_one_task_learns_does_not_touch_another(learner, kind):
    (support_x, support_y), query = batch(num_tasks=2)
    fine_tuning = FineTuning(learner, kind(0.01))
    (expected,) = fine_tuning.points(((support_x, support_y), query), (5,))
    louder = tf.stack([support_y[0], 50 * support_y[1]])
    (other,) = fine_tuning.points(((support_x, louder), query), (5,))
    np.testing.assert_allclose(other.outputs[0], expected.outputs[0], rtol=1e-12)
    assert np.abs(other.outputs[1] - expected.outputs[1]).max() > 1e-8


def test_a_batch_begins_anew_whatever_came_before_it(learner):
    fine_tuning = FineTuning(learner, keras.optimizers.Adam(0.02))
    first, after_other_sizes = (
        [point.losses.numpy() for point in fine_tuning.points(batch(size), (2, 5))][-1][:2]
        for size in (2, 3)
    )
    (again,) = fine_tuning.points(batch(2), (5,))
    np.testing.assert_allclose(again.losses, first, rtol=1e-12)
    np.testing.assert_allclose(after_other_sizes, first, rtol=1e-12)


def test_xla_computes_the_same():
    compiled = learner_of(network(), jit_compile="on")
    plain = learner_of(network())
    expected, other = (
        [p.losses for p in FineTuning(each, keras.optimizers.Adam(0.02)).points(batch(), (2, 9))]
        for each in (plain, compiled)
    )
    np.testing.assert_allclose(other, expected, rtol=1e-9)


def test_only_what_the_algorithm_adapts_is_trained():
    model = network()
    head = model.layers[-1].name
    flow = amaml.GradientFlow(solver=amaml.solvers.GradientDescent(STEP_SIZE), final_time=1.0)
    anil = learner_of(model, amaml.algorithms.AdjointMAML(flow, adapted_layers=[head]))
    episodes = batch()
    before = [variable.numpy() for variable in model.trainable_variables]
    (end,) = FineTuning(anil, keras.optimizers.SGD(STEP_SIZE)).points(episodes, (6,))
    (support_x, support_y), (query_x, _) = episodes
    alone = network()
    for layer in alone.layers[:-1]:
        layer.trainable = False
    trained_by_keras(alone, keras.optimizers.SGD(STEP_SIZE), support_x[0], support_y[0], 6)
    np.testing.assert_allclose(end.outputs[0], alone(query_x[0]), rtol=1e-9)
    for variable, value in zip(model.trainable_variables, before, strict=True):
        np.testing.assert_array_equal(variable, value)


def test_all_layers_can_be_trained_whatever_the_algorithm_adapts():
    model = network()
    head = amaml.algorithms.AdjointMAML(
        adapted_layers=[model.layers[-1].name], learned_rates="entry"
    )
    optimizer, episodes = keras.optimizers.Adam(0.02), batch()
    (end,) = FineTuning(learner_of(model, head), optimizer, all_layers=True).points(episodes, (6,))
    (expected,) = FineTuning(learner_of(network()), optimizer).points(episodes, (6,))
    np.testing.assert_allclose(end.outputs, expected.outputs, rtol=1e-9)


def test_dropout_draws_new_masks_in_every_step():
    model = keras.Sequential(
        [keras.Input((1,)), keras.layers.Dropout(0.5, seed=0), keras.layers.Dense(1)]
    )
    learner = learner_of(model)
    # With one mask for all steps, examples that it drops would never move the weight.
    x = tf.ones((1, 1, 1))
    episodes = ((x, x), (x, x))
    (end,) = FineTuning(learner, keras.optimizers.SGD(0.01)).points(episodes, (40,))
    kernel, bias = (float(v.numpy().ravel()[0]) for v in model.trainable_variables)
    results = set()
    for seen in (0.0, 2.0):  # what dropout lets through of the input, in all steps
        w, b = kernel, bias
        for _ in range(40):
            slope = 2 * (w * seen + b - 1)
            w, b = w - 0.01 * slope * seen, b - 0.01 * slope
        results.add(round(w + b, 4))
    assert round(float(end.outputs[0, 0, 0]), 4) not in results


def with_one_bad_task():
    (support_x, support_y), query = batch(num_tasks=3)
    bad = tf.stack([support_y[0], support_y[1] * np.nan, support_y[2]])
    return (support_x, bad), query


def test_a_task_that_fails_is_told():
    fine_tuning = FineTuning(learner_of(network()), keras.optimizers.Adam())
    sentence = r"Fine-tuning failed for task 1 of the batch \(1 of 3 tasks failed\) within 4 steps"
    with pytest.raises(AdaptationError, match=sentence):
        list(fine_tuning.points(with_one_bad_task(), (4,)))


def test_a_task_that_fails_can_be_left_out():
    learner = learner_of(network(), on_failure="drop")
    (end,) = FineTuning(learner, keras.optimizers.Adam()).points(with_one_bad_task(), (4,))
    np.testing.assert_array_equal(end.diagnostics.status, [0, -1, 0])
    np.testing.assert_array_equal(np.isfinite(end.losses), [True, False, True])


@pytest.mark.parametrize(
    ("optimizer", "sentence"),
    [
        (keras.optimizers.Adafactor(), "treats every parameter apart .*, got Adafactor; use one"),
        (keras.optimizers.Muon(), "treats every parameter apart .*, got Muon; use one"),
        (keras.optimizers.LossScaleOptimizer(keras.optimizers.Adam()), "got LossScaleOptimizer"),
        (keras.optimizers.Adam(clipnorm=1.0), "without clipnorm, .*, got clipnorm; leave it out"),
        (keras.optimizers.Adam(global_clipnorm=1.0), "got global_clipnorm; leave it out"),
        (keras.optimizers.Adam(use_ema=True), "got use_ema; leave it out"),
    ],
)
def test_optimizers_that_would_mix_tasks_are_refused(learner, optimizer, sentence):
    with pytest.raises(ValueError, match=sentence):
        FineTuning(learner, optimizer)
