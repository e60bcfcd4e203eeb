"""Every algorithm's meta-gradient against its definition, and what holds for all of them."""

import keras
import numpy as np
import problems
import pytest
import tensorflow as tf

import amaml_tf as amaml
from amaml_tf.algorithms import conjugate_gradients

STEP, STEPS = 0.05, 4


def learner_of(algorithm, problem, jit_compile=False, run_eagerly=False):
    learner = amaml.MetaLearner(problem.model, algorithm)
    learner.compile(
        keras.optimizers.SGD(0.1),
        loss=problem.loss,
        jit_compile=jit_compile,
        run_eagerly=run_eagerly,
    )
    return learner


def adapted_parameters(learner, episodes):
    tasks = [tuple(v[i] for v in episodes[0]) for i in range(episodes[0][0].shape[0])]
    return [learner.adapt(task) for task in tasks]


def test_maml_is_adjoint_maml_with_gradient_descent():
    problem = problems.dense()
    maml = learner_of(amaml.algorithms.MAML(STEP, STEPS), problem)
    result = maml.meta_gradients(problem.episodes)
    unrolled = problems.unrolled_gradients(problem, STEP, STEPS)
    assert problems.relative_error(result.gradients, unrolled) < 1e-8
    flow = amaml.GradientFlow(
        final_time=STEP * STEPS, solver=amaml.solvers.GradientDescent(STEP), adjoint="discrete"
    )
    same = learner_of(amaml.algorithms.AdjointMAML(flow), problem).meta_gradients(problem.episodes)
    assert problems.relative_error(result.gradients, same.gradients) < 1e-14


def test_first_order_maml_is_the_query_gradient_at_the_adapted_parameters():
    problem = problems.dense()
    learner = learner_of(amaml.algorithms.FirstOrderMAML(STEP, STEPS), problem)
    result = learner.meta_gradients(problem.episodes)
    expected = []
    for i, adapted in enumerate(adapted_parameters(learner, problem.episodes)):
        x, y = (v[i] for v in problem.episodes[1])
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean(tf.square(adapted(x) - y))
        expected.append(tape.gradient(loss, [v.value for v in adapted.trainable_variables]))
    mean = [np.mean(column, axis=0) for column in zip(*expected, strict=True)]
    assert problems.relative_error(result.gradients, mean) < 1e-12


def test_reptile_points_from_the_adapted_parameters():
    problem = problems.dense()
    learner = learner_of(amaml.algorithms.Reptile(STEP, STEPS), problem)
    result = learner.meta_gradients(problem.episodes)
    theta = problem.model.get_weights()
    adapted = [m.get_weights() for m in adapted_parameters(learner, problem.episodes)]
    expected = [
        value - np.mean(column, axis=0)
        for value, column in zip(theta, zip(*adapted, strict=True), strict=True)
    ]
    assert problems.relative_error(result.gradients, expected) < 1e-12


# -- implicit MAML ------------------------------------------------------------------------------

WEIGHT = 0.5


def implicit_gradient(problem):
    """The mean over tasks of (I + H / w)^-1 ∇L_Q(u*), where u* solves (H + w) u* = c + w θ."""
    arrays = [v.numpy() for v in tf.nest.flatten(problem.episodes)]
    theta = problem.parameters[0].numpy()[:, 0]
    gradients = []
    for sx, sy, qx, qy in zip(*arrays, strict=True):
        hessian = 2 * sx.T @ sx / len(sx)
        target = 2 * sx.T @ sy[:, 0] / len(sx)
        solution = np.linalg.solve(hessian + WEIGHT * np.eye(3), target + WEIGHT * theta)
        query_gradient = 2 * qx.T @ (qx @ solution - qy[:, 0]) / len(qx)
        gradients.append(np.linalg.solve(np.eye(3) + hessian / WEIGHT, query_gradient))
    return np.mean(gradients, axis=0)


@pytest.mark.parametrize("how", [{}, {"jit_compile": True}, {"run_eagerly": True}], ids=str)
def test_implicit_maml_is_the_implicit_gradient(how):
    problem = problems.linear()
    algorithm = amaml.algorithms.ImplicitMAML(0.2, 250, WEIGHT, num_cg_steps=3)
    result = learner_of(algorithm, problem, **how).meta_gradients(problem.episodes)
    assert problems.relative_error(result.gradients, [implicit_gradient(problem)]) < 1e-8
    backward = result.diagnostics.backward
    np.testing.assert_array_equal(backward.num_vector_jacobian_products, 3)
    assert np.all(backward.growth < 1)


@pytest.mark.parametrize("options", [{"num_cg_steps": 1}, {"num_cg_steps": 3, "cg_damping": 1.0}])
def test_implicit_maml_is_inexact_if_told_to(options):
    problem = problems.linear()
    algorithm = amaml.algorithms.ImplicitMAML(0.2, 250, WEIGHT, **options)
    result = learner_of(algorithm, problem).meta_gradients(problem.episodes)
    assert 1e-3 < problems.relative_error(result.gradients, [implicit_gradient(problem)]) < 1


def test_implicit_maml_refuses_what_it_cannot_do():
    for argument, value in {"proximal_weight": 0, "num_cg_steps": 0, "cg_damping": -1}.items():
        with pytest.raises(ValueError, match=f"Expected {argument} to be .* got {value}"):
            amaml.algorithms.ImplicitMAML(**{argument: value})


@pytest.mark.parametrize("jit_compile", [False, True])
def test_conjugate_gradients_treat_every_row_apart(jit_compile):
    matrices = tf.constant(
        [np.diag([1.0, 2.0, 4.0]), np.eye(3), np.diag([1.0, -3.0, 1.0]), np.eye(3), np.eye(3)],
        tf.float32,
    )
    right_side = tf.constant([[1, 1, 1], [2, 0, 1], [1, 1, 0], [0, 0, 0], [1, np.nan, 1]]) * 1e-15

    @tf.function(jit_compile=jit_compile)
    def solve():
        return conjugate_gradients.solve(
            lambda v: tf.linalg.matvec(matrices, v), right_side, max_num_steps=9
        )

    solution, num_products = solve()
    expected = np.array([[1, 0.5, 0.25], [2, 0, 1], [1, 1, 0], [0, 0, 0]])
    np.testing.assert_allclose(solution[:4] * 1e15, expected, rtol=1e-5)
    assert not np.any(np.isfinite(solution[4]))
    assert 3 <= num_products[0] <= 5
    np.testing.assert_array_equal(num_products[1:4], [1, 1, 0])


# -- ANIL and Meta-SGD --------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [amaml.algorithms.ANIL, amaml.algorithms.MetaSGD])
def test_meta_gradients_match_central_differences(kind):
    problem = problems.dense()
    learner = learner_of(kind(STEP, STEPS), problem)
    result = learner.meta_gradients(problem.episodes)
    variables = [*problem.model.trainable_variables, *learner.algorithm_variables]
    gradients = [*result.gradients, *result.algorithm_gradients]
    loss = problems.loss_after_adaptation(problem, learner)
    for i, (variable, gradient) in enumerate(zip(variables, gradients, strict=True)):
        slope, direction = problems.directional_differences(loss, [variable], seed=i)
        assert problems.along([gradient], direction) == pytest.approx(slope, rel=1e-6)


def test_anil_adapts_the_head_alone():
    problem = problems.dense()
    hidden, head = problem.model.layers
    theta = problem.model.get_weights()
    for layers, held in ((None, (0, 1)), ([head.name], (0, 1)), ([hidden.name], (2, 3))):
        learner = learner_of(amaml.algorithms.ANIL(STEP, STEPS, layers), problem)
        for adapted in adapted_parameters(learner, problem.episodes):
            same = [
                np.array_equal(*pair) for pair in zip(theta, adapted.get_weights(), strict=True)
            ]
            assert [i for i in range(4) if same[i]] == list(held)


def test_anil_passes_over_layers_without_weights():
    problem = problems.convolutional()
    dropout = keras.layers.Dropout(0.1, dtype="float64")
    model = keras.Sequential([*problem.model.layers, dropout])
    marks = amaml.algorithms.ANIL().adapted(model)
    assert marks == [False] * 4 + [True] * 2


def test_meta_sgd_begins_as_maml_and_learns_a_rate_for_every_entry():
    problem = problems.dense()
    learner = learner_of(amaml.algorithms.MetaSGD(STEP, STEPS), problem)
    result = learner.meta_gradients(problem.episodes)
    expected = problems.unrolled_gradients(problem, STEP, STEPS)
    assert problems.relative_error(result.gradients, expected) < 1e-8
    (rates,) = learner.algorithm_variables
    assert rates.shape == (problem.model.count_params(),)
    learner.fit(tf.data.Dataset.from_tensors(problem.episodes), verbose=0)
    assert np.all(rates.numpy() != 0)


# -- baselines ----------------------------------------------------------------------------------


def test_joint_training_is_the_gradient_on_all_examples():
    problem = problems.dense()
    flow = amaml.GradientFlow(final_time=0.2, solver=amaml.solvers.GradientDescent(STEP))
    learner = learner_of(amaml.algorithms.JointTraining(flow), problem)
    result = learner.meta_gradients(problem.episodes)
    (support_x, support_y), (query_x, query_y) = problem.episodes
    x = tf.reshape(tf.concat([support_x, query_x], axis=1), [-1, 2])
    y = tf.reshape(tf.concat([support_y, query_y], axis=1), [-1, 1])
    with tf.GradientTape() as tape:
        loss = tf.reduce_mean(tf.square(problem.model(x) - y))
    expected = tape.gradient(loss, [v.value for v in problem.model.trainable_variables])
    assert problems.relative_error(result.gradients, expected) < 1e-12
    before, after, diagnostics = learner.predict_episodes(problem.episodes)
    np.testing.assert_allclose(result.losses, before[0], rtol=1e-12)
    np.testing.assert_array_equal(result.diagnostics.forward.num_evaluations, 0)
    np.testing.assert_array_equal(diagnostics.forward.num_evaluations, 4)
    assert np.all(after[0] < before[0])


def test_joint_training_stops_at_values_that_are_not_finite():
    problem = problems.dense()
    (x, y), query = problem.episodes
    learner = learner_of(amaml.algorithms.JointTraining(), problem)
    with pytest.raises(amaml.AdaptationError, match="infinite or NaN"):
        learner.meta_gradients(((x, y * np.nan), query))


def test_from_scratch_keeps_the_initialization():
    problem = problems.dense()
    theta = problem.model.get_weights()
    flow = amaml.GradientFlow(final_time=0.2, solver=amaml.solvers.GradientDescent(STEP))
    learner = learner_of(amaml.algorithms.FromScratch(flow), problem)
    learner.compile(keras.optimizers.Adam(0.1, global_clipnorm=1.0), problem.loss)
    episodes = tf.data.Dataset.from_tensors(problem.episodes)
    history = learner.fit(episodes.repeat(3), verbose=0).history
    assert history["gradient_evaluations"] == [0]
    for value, expected in zip(problem.model.get_weights(), theta, strict=True):
        np.testing.assert_array_equal(value, expected)
    logs = learner.evaluate(episodes, verbose=0, return_dict=True)
    assert logs["loss"] < logs["loss_before"]


@pytest.mark.parametrize("name", ["joint_training", "from_scratch"])
@pytest.mark.parametrize("options", [{"learn_final_time": True}, {"learned_rates": "tensor"}])
def test_baselines_refuse_to_learn_what_they_would_not_learn(name, options):
    with pytest.raises(amaml.UsageError, match=f"settings that algorithm {name} has, got --learn"):
        amaml.Experiment(algorithm=name, **options).make_algorithm()


# -- all ----------------------------------------------------------------------------------------


def small(name):
    kind = amaml.algorithms.REGISTRY[name]
    if name not in ("adjoint_maml", "joint_training", "from_scratch"):
        return kind(STEP, STEPS)
    flow = amaml.GradientFlow(final_time=0.2, solver=amaml.solvers.GradientDescent(STEP))
    return kind(flow)


@pytest.mark.long
@pytest.mark.parametrize("name", amaml.algorithms.REGISTRY)
def test_every_algorithm_trains_and_evaluates(name):
    problem = problems.dense(dtype="float32")
    learner = learner_of(small(name), problem)
    batches = tf.data.Dataset.from_tensors(problem.episodes).repeat(20)
    history = learner.fit(batches, epochs=2, verbose=0).history
    if name == "from_scratch":
        assert history["loss"][1] == pytest.approx(history["loss"][0])
    else:
        assert history["loss"][1] < history["loss"][0]
    logs = learner.evaluate(batches.take(1), verbose=0, return_dict=True)
    if name == "joint_training":  # has learned from the query sets already
        assert logs["loss"] != logs["loss_before"]
    else:
        assert logs["loss"] < logs["loss_before"]
    # What XLA compiles for evaluations is part of this, or of that of AdjointMAML.
    result = learner.meta_gradients(problem.episodes)
    compiled = learner_of(learner.algorithm, problem, jit_compile="on")
    same = compiled.meta_gradients(problem.episodes)
    if name != "from_scratch":
        assert problems.relative_error(same.gradients, result.gradients) < 1e-4
    np.testing.assert_allclose(same.losses, result.losses, rtol=1e-4)


@pytest.mark.parametrize(
    "name", ["anil", "first_order_maml", "implicit_maml", "maml", "meta_sgd", "reptile"]
)
def test_wrong_steps_are_refused(name):
    with pytest.raises(ValueError, match="Expected num_steps to be at least 1, got 0"):
        amaml.algorithms.REGISTRY[name](0.1, 0)
    with pytest.raises(ValueError, match="Expected step_size to be above 0"):
        amaml.algorithms.REGISTRY[name](0.0, 1)
