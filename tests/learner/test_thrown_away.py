"""Learners that are made, used and thrown away leave nothing behind."""

import gc
import weakref

import problems
import tensorflow as tf
from tensorflow.python.framework import ops

import amaml_tf as amaml


def used_learner() -> weakref.ref:
    """Uses a learner in every way; returns a reference to its model that does not keep it."""
    problem = problems.dense(num_tasks=2, dtype="float32")
    learner = amaml.MetaLearner(problem.model, amaml.algorithms.MAML(0.05, 2))
    learner.compile("adam", loss="mse", jit_compile="off")
    learner.fit(tf.data.Dataset.from_tensors(problem.episodes), verbose=0)
    learner.evaluate(tf.data.Dataset.from_tensors(problem.episodes), verbose=0)
    learner.meta_gradients(problem.episodes)
    learner.adapt(tf.nest.map_structure(lambda v: v[0], problem.episodes[0]))
    return weakref.ref(problem.model)


def test_models_and_graphs_are_freed():
    gc.collect()  # what other tests have left
    registered = set(ops.gradient_registry.list())
    model = used_learner()
    gc.collect()  # frees the learner, and with it its entries in the registry
    gc.collect()  # frees what these held
    assert model() is None
    assert not set(ops.gradient_registry.list()) - registered


def test_a_learner_that_is_alive_keeps_its_gradients():
    problem = problems.dense(num_tasks=2, dtype="float32")
    learner = amaml.MetaLearner(problem.model, amaml.algorithms.MAML(0.05, 2))
    learner.compile("adam", loss="mse", jit_compile="off")
    before = set(ops.gradient_registry.list())
    learner.meta_gradients(problem.episodes)
    own = set(ops.gradient_registry.list()) - before
    assert own
    other = amaml.MetaLearner(problem.model, amaml.algorithms.MAML(0.05, 2))
    other.compile("adam", loss="mse", jit_compile="off")
    other.meta_gradients(problem.episodes)
    del other
    gc.collect()
    assert set(ops.gradient_registry.list()) - before == own
