"""Meta-gradients that are clipped task by task."""

import numpy as np
import problems
import pytest
import tensorflow as tf

import amaml_tf as amaml

FLOW = amaml.GradientFlow(final_time=0.4, solver=amaml.solvers.GradientDescent(0.1))
# From scratch nothing is learned that could be clipped. The default solver draws the vectors of its
# power iteration for a batch as a whole, so a task alone is not quite what it is among others.
KINDS = amaml.algorithms.REGISTRY | {
    "adjoint_maml": lambda: amaml.algorithms.AdjointMAML(FLOW, learned_rates="tensor")
}
NAMES = sorted(KINDS.keys() - {"from_scratch"})


def gradients_of(algorithm, problem, episodes, task_clip_norm, **options):
    learner = amaml.MetaLearner(problem.model, algorithm)
    learner.compile(loss=problem.loss, jit_compile=False, task_clip_norm=task_clip_norm, **options)
    result = learner.meta_gradients(episodes)
    return [g.numpy() for g in result.gradients], [g.numpy() for g in result.algorithm_gradients]


def norm(gradients):
    return np.sqrt(sum(np.sum(np.square(g)) for g in gradients))


@pytest.mark.long
@pytest.mark.parametrize("name", NAMES)
def test_every_task_has_at_most_the_norm(name):
    problem, algorithm = problems.dense(num_tasks=4), KINDS[name]()
    alone = []
    for i in range(4):
        one = tf.nest.map_structure(lambda array, i=i: array[i : i + 1], problem.episodes)
        alone.append(gradients_of(algorithm, problem, one, None))
    norms = [norm(of_model) for of_model, _ in alone]
    limit = float(np.median(norms))  # two of the four are larger
    scales = [min(1, limit / each) for each in norms]
    scaled = [[scale * g for g in (*a, *b)] for scale, (a, b) in zip(scales, alone, strict=True)]
    expected = [np.mean(column, axis=0) for column in zip(*scaled, strict=True)]

    def all_of(limit):
        a, b = gradients_of(algorithm, problem, problem.episodes, limit)
        return [*a, *b]

    assert problems.relative_error(all_of(limit), expected) < 1e-12
    assert problems.relative_error(all_of(limit), all_of(None)) > 1e-3
    assert problems.relative_error(all_of(2 * max(norms)), all_of(None)) < 1e-14


def test_a_task_that_failed_has_no_say():
    problem = problems.dense(num_tasks=3)
    (x, y), query = problem.episodes
    y = tf.tensor_scatter_nd_update(y, [[0, 0, 0]], tf.constant([np.nan], y.dtype))
    algorithm = amaml.algorithms.AdjointMAML(FLOW)
    others = tf.nest.map_structure(lambda array: array[1:], ((x, y), query))
    for limit in (None, 1e-3):
        some, _ = gradients_of(algorithm, problem, ((x, y), query), limit, on_failure="drop")
        expected, _ = gradients_of(algorithm, problem, others, limit)
        assert problems.relative_error(some, expected) < 1e-12


@pytest.mark.parametrize("wrong", [0.0, -1.0, float("nan")])
def test_a_norm_that_is_not_positive_is_refused(wrong):
    problem = problems.dense()
    learner = amaml.MetaLearner(problem.model)
    with pytest.raises(ValueError, match="Expected task_clip_norm to be above 0, got"):
        learner.compile(loss=problem.loss, task_clip_norm=wrong)
