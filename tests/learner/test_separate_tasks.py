"""Tasks that have their whole inner run to themselves: what one program of all tasks gives."""

import numpy as np
import problems
import pytest
import tensorflow as tf

import amaml_tf as amaml
from amaml_tf.flow.buffers import capacity_of, refuse_too_many
from amaml_tf.functional.mapping import most_side_by_side

FLOW = amaml.GradientFlow(final_time=0.4)


def both(problem, algorithm, **options):
    for mode in ("off", "on"):
        learner = amaml.MetaLearner(problem.model, algorithm)
        learner.compile("sgd", loss=problem.loss, vectorize=mode, jit_compile="off", **options)
        assert learner.execution.separate == (mode == "off")
        yield learner


def assert_same(one, other):
    tf.nest.assert_same_structure(one, other)
    for a, b in zip(tf.nest.flatten(one), tf.nest.flatten(other), strict=True):
        if b is None:  # diagnostics of an adjoint, where there is none
            assert a is None
        else:
            np.testing.assert_allclose(a, b, rtol=1e-10, atol=1e-12)


SHORT = {"adjoint_maml", "implicit_maml"}


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=[] if name in SHORT else [pytest.mark.long])
        for name in amaml.algorithms.REGISTRY
    ],
)
def test_meta_gradients_and_adaptation(name):
    problem = problems.dense(num_tasks=3)
    separate, together = both(problem, problems.algorithm(name, FLOW), task_clip_norm=0.2)
    assert_same(*(each.meta_gradients(problem.episodes) for each in (separate, together)))
    assert_same(*(each.adapt_many(problem.episodes[0]) for each in (separate, together)))


def test_no_task_depends_on_the_others_in_its_batch():
    problem = problems.dense(num_tasks=3)
    _, learner = both(problem, problems.algorithm("adjoint_maml", FLOW))
    whole = learner.meta_gradients(problem.episodes)
    for i in range(3):
        alone = tf.nest.map_structure(lambda v, i=i: v[i : i + 1], problem.episodes)
        found = learner.meta_gradients(alone)
        expected = tf.nest.map_structure(lambda v, i=i: v[i : i + 1], whole.diagnostics.forward)
        assert_same(found.diagnostics.forward, expected)
        assert_same(found.losses, whole.losses[i : i + 1])


@pytest.mark.parametrize(
    "options",
    [{"shortest_time": 0.05}, pytest.param({"learn_final_time": True}, marks=pytest.mark.long)],
)
def test_times_of_their_own(options):
    problem = problems.dense(num_tasks=3)
    separate, together = both(problem, amaml.algorithms.AdjointMAML(FLOW, **options))
    found, expected = (each.meta_gradients(problem.episodes) for each in (separate, together))
    assert_same(found, expected)
    if "shortest_time" in options:
        assert len(set(found.diagnostics.forward.time.numpy())) == 3


def test_a_failed_task_is_left_out():
    problem = problems.dense(num_tasks=3)
    (x, y), query = problem.episodes
    y = tf.tensor_scatter_nd_update(y, [[1, 0, 0]], tf.constant([np.nan], y.dtype))
    separate, together = both(problem, problems.algorithm("maml", FLOW), on_failure="drop")
    found, expected = (each.meta_gradients(((x, y), query)) for each in (separate, together))
    assert found.diagnostics.num_dropped_tasks == 1
    assert_same(found.gradients, expected.gradients)
    assert_same(found.loss, expected.loss)


def test_runs_share_the_memory():
    state = tf.zeros([1, 2**18])  # 1 MiB
    solver = amaml.solvers.GradientDescent(0.1)

    def states(copies, **budget):
        given = {"max_checkpoints": None, "memory_budget": None} | budget
        return capacity_of(solver, 10_000, **given, state=state, copies=copies)

    assert states(1, memory_budget=60.0) == 60
    assert states(2, memory_budget=60.0) == 30
    assert states(2, max_checkpoints=40) == 40
    with pytest.raises(amaml.UsageError, match="got 2097152 tasks"):
        refuse_too_many(16, state, copies=2**21)
    assert 2 <= most_side_by_side() <= 8
