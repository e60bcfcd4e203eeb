"""The floor of a meta-gradient, which must follow the functions that it calls."""

import numpy as np
import problems

import amaml_tf as amaml
from benchmarks.floor import floor_of


def test_a_floor_runs():
    problem = problems.dense()
    learner = amaml.MetaLearner(problem.model, amaml.algorithms.MAML(0.05, 1))
    learner.compile("sgd", loss=problem.loss, jit_compile=False)
    loss = floor_of(learner, problem.episodes, 1, 1)()
    assert np.isfinite(loss)
