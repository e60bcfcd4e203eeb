"""Every algorithm's meta-gradient against its definition, and what holds for all of them."""

import keras
import numpy as np
import problems
import pytest
import tensorflow as tf

import amaml_tf as amaml

STEP, STEPS = 0.05, 4


def learner_of(algorithm, problem):
    learner = amaml.MetaLearner(problem.model, algorithm)
    learner.compile(keras.optimizers.SGD(0.1), loss=problem.loss, jit_compile=False)
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


@pytest.mark.parametrize("name", amaml.algorithms.REGISTRY)
def test_every_algorithm_trains_and_evaluates(name):
    problem = problems.dense(dtype="float32")
    kind = amaml.algorithms.REGISTRY[name]
    algorithm = kind() if name == "adjoint_maml" else kind(STEP, STEPS)
    learner = learner_of(algorithm, problem)
    batches = tf.data.Dataset.from_tensors(problem.episodes).repeat(20)
    history = learner.fit(batches, epochs=2, verbose=0).history
    assert history["loss"][1] < history["loss"][0]
    logs = learner.evaluate(batches.take(1), verbose=0, return_dict=True)
    assert logs["loss"] < logs["loss_before"]


@pytest.mark.parametrize("name", ["maml", "first_order_maml", "reptile"])
def test_wrong_steps_are_refused(name):
    with pytest.raises(ValueError, match="Expected num_steps to be at least 1, got 0"):
        amaml.algorithms.REGISTRY[name](0.1, 0)
    with pytest.raises(ValueError, match="Expected step_size to be above 0"):
        amaml.algorithms.REGISTRY[name](0.0, 1)
