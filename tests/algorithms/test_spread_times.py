"""Times of adaptation that are spread over the tasks of a meta-update."""

import dataclasses

import numpy as np
import problems
import pytest
import tensorflow as tf

import amaml_tf as amaml

SHORTEST, LONGEST = 0.1, 0.8


def learner_of(problem, flow, **options):
    learner = amaml.MetaLearner(problem.model, amaml.algorithms.AdjointMAML(flow, **options))
    learner.compile(loss=problem.loss, jit_compile=False)
    return learner


def times_of(num_tasks):
    return [SHORTEST * (LONGEST / SHORTEST) ** ((i + 0.5) / num_tasks) for i in range(num_tasks)]


def task(episodes, i):
    return tf.nest.map_structure(lambda array: array[i : i + 1], episodes)


@pytest.mark.long
@pytest.mark.parametrize(
    ("solver", "adjoint"),
    [
        (amaml.solvers.GradientDescent(0.05), "discrete"),
        (amaml.solvers.RungeKutta4(0.1), "discrete"),
        (amaml.solvers.RungeKutta4(0.1), "continuous"),
        (amaml.solvers.RungeKuttaChebyshev(rtol=1e-4, atol=1e-6), "discrete"),
        (amaml.solvers.RungeKuttaChebyshev(rtol=1e-4, atol=1e-6), "continuous"),
    ],
)
def test_every_task_is_adapted_for_its_own_time(solver, adjoint):
    problem = problems.dense(num_tasks=4)
    flow = amaml.GradientFlow(final_time=LONGEST, solver=solver, adjoint=adjoint)
    result = learner_of(problem, flow, shortest_time=SHORTEST).meta_gradients(problem.episodes)
    alone = []
    for i, time in enumerate(times_of(4)):
        own = learner_of(problem, dataclasses.replace(flow, final_time=time))
        alone.append(own.meta_gradients(task(problem.episodes, i)))
    mean = [np.mean(column, axis=0) for column in zip(*(r.gradients for r in alone), strict=True)]
    # The spectral radius of a batch of four is estimated from other random vectors.
    tolerance = 1e-7 if solver.adaptive else 1e-12
    assert problems.relative_error(result.gradients, mean) < tolerance
    np.testing.assert_allclose(result.losses, [r.losses[0] for r in alone], rtol=tolerance)
    np.testing.assert_allclose(result.diagnostics.forward.time, times_of(4), rtol=1e-12)
    evaluations = [int(r.diagnostics.forward.num_evaluations[0]) for r in alone]
    assert result.diagnostics.forward.num_evaluations.numpy().tolist() == evaluations
    assert evaluations[0] < evaluations[-1]


def test_held_layers_and_learned_rates_are_learned_with_them():
    problem = problems.dense(num_tasks=3)
    flow = amaml.GradientFlow(final_time=LONGEST, solver=amaml.solvers.Heun(0.1))
    name = problem.model.layers[-1].name
    learner = learner_of(
        problem, flow, adapted_layers=[name], shortest_time=SHORTEST, learned_rates="entry"
    )
    result = learner.meta_gradients(problem.episodes)
    gradients = [*result.gradients, *result.algorithm_gradients]
    variables = [*problem.model.trainable_variables, *learner.algorithm_variables]
    slope, direction = problems.directional_differences(
        lambda: float(learner.meta_gradients(problem.episodes).loss), variables
    )
    assert problems.along(gradients, direction) == pytest.approx(slope, rel=1e-7)


def test_use_is_for_the_final_time():
    problem = problems.dense(num_tasks=2)
    flow = amaml.GradientFlow(final_time=LONGEST, solver=amaml.solvers.GradientDescent(0.05))
    spread = learner_of(problem, flow, shortest_time=SHORTEST)
    plain = learner_of(problem, flow)
    for learner in (spread, plain):
        assert learner.algorithm.final_time() == LONGEST
    after = [x.predict_episodes(problem.episodes).after[0].numpy() for x in (spread, plain)]
    np.testing.assert_array_equal(*after)


@pytest.mark.parametrize(
    ("shortest_time", "options", "message"),
    [
        (0.0, {}, "Expected shortest_time to be between 0 and the final time 0.8, got 0.0; pass"),
        (0.8, {}, "Expected shortest_time to be between 0 and the final time 0.8, got 0.8; pass"),
        (0.1, {"learn_final_time": True}, "Expected a final time that is not learned"),
        (0.1, {"adjoint": "backsolve"}, "got RungeKuttaChebyshev and 'backsolve'"),
        (
            0.1,
            {"solver": amaml.solvers.BDF(), "adjoint": "continuous"},
            "Expected a solver of amaml_tf.solvers",
        ),
    ],
)
def test_what_does_not_go_with_it_is_refused(shortest_time, options, message):
    learned = {name: options.pop(name) for name in ("learn_final_time",) if name in options}
    flow = amaml.GradientFlow(final_time=LONGEST, **options)
    with pytest.raises(ValueError, match=message):
        amaml.algorithms.AdjointMAML(flow, shortest_time=shortest_time, **learned)


@pytest.mark.parametrize("tasks_per_step", [None, 1])
def test_a_batch_of_one_task_is_refused(tasks_per_step):
    problem = problems.dense(num_tasks=1)
    learner = learner_of(problem, amaml.GradientFlow(), shortest_time=SHORTEST)
    learner.compile(loss="mse", tasks_per_step=tasks_per_step)
    with pytest.raises(ValueError, match="Expected batches of 2 tasks or more with shortest_time"):
        learner.meta_gradients(problem.episodes)
