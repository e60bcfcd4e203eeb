"""Whose statistics batch normalization uses on query sets: of the support set, or of themselves."""

import json

import keras
import numpy as np
import problems
import pytest

import amaml_tf as amaml
from amaml_tf.experiment import Experiment

SGD = keras.optimizers.SGD(0.4)


@pytest.fixture(scope="module", params=["off", "on"])
def learner(request):
    """A classifier with batch normalization that takes one Euler step of 0.4."""
    return classifier(vectorize=request.param)


def losses(evaluation, place):
    return evaluation.curve[place].values["loss"]


def classifier(step_size=0.4, **options):
    problem = problems.convolutional()
    made = amaml.MetaLearner(problem.model, amaml.algorithms.MAML(step_size, 1))
    made.compile(loss=problem.loss, jit_compile="off", **options)
    return made


def by_keras(learner, episodes):
    """The query losses of adapted models in plain Keras, which predict by stored statistics."""
    found = []
    for task in range(2):
        (support_x, support_y), (x, y) = [[v[task] for v in part] for part in episodes]
        predictions = learner.adapt((support_x, support_y))(x, training=False)
        found.append(np.mean(keras.losses.sparse_categorical_crossentropy(y, predictions)))
    return found


def test_those_of_the_support_set_are_those_of_the_adapted_model(learner):
    """E1, E2: the same predictions in an evaluation, in an export and in plain Keras."""
    episodes = problems.convolutional().episodes
    found = amaml.evaluate(learner, [episodes], 2)
    assert found.query_statistics == "support"
    expected = by_keras(learner, episodes)
    np.testing.assert_allclose(losses(found, 1), expected, rtol=1e-9)
    unadapted = by_keras(classifier(1e-13), episodes)
    np.testing.assert_allclose(losses(found, 0), unadapted, rtol=1e-9)
    # The other ways to adapt: an Euler step of the flow, a step of gradient descent.
    along = amaml.evaluate(learner, [episodes], 2, times=(0.4,))
    np.testing.assert_allclose(losses(along, 1), expected, rtol=1e-9)
    tuned = amaml.evaluate(learner, [episodes], 2, optimizer=SGD, steps=(1,))
    np.testing.assert_allclose(losses(tuned, 1), expected, rtol=1e-6)  # Keras's rate is float32
    # One query is predicted as well as many.
    support, query = episodes
    few = amaml.evaluate(learner, [(support, tuple(v[:, :2] for v in query))], 2)
    predicted = learner.predict_episodes(episodes, query_statistics="support").after[1]
    some = keras.losses.sparse_categorical_crossentropy(query[1][:, :2], predicted[:, :2])
    np.testing.assert_allclose(losses(few, 1), np.mean(some, axis=1), rtol=1e-9)


def test_those_of_the_queries_are_those_of_training(learner):
    """The transductive setting of the papers, in which docs/results was measured."""
    episodes = problems.convolutional().episodes
    found = amaml.evaluate(learner, [episodes], 2, query_statistics="batch")
    assert found.query_statistics == "batch"
    before, after, _ = learner.predict_episodes(episodes)
    np.testing.assert_allclose(losses(found, 0), before[0], rtol=1e-12)
    np.testing.assert_allclose(losses(found, 1), after[0], rtol=1e-12)
    assert abs(np.subtract(losses(found, 1), by_keras(learner, episodes))).min() > 1e-3
    for options in ({"times": (0.4,)}, {"optimizer": SGD, "steps": (1,)}):
        other = amaml.evaluate(learner, [episodes], 2, query_statistics="batch", **options)
        np.testing.assert_allclose(losses(other, 1), after[0], rtol=1e-6)


def test_the_evaluation_says_whose_they_were(tmp_path):
    problem = problems.convolutional()
    stored = amaml.MetaLearner(problem.model, amaml.algorithms.MAML(0.4, 1), batch_statistics=False)
    stored.compile(loss=problem.loss, jit_compile="off")
    found = amaml.evaluate(stored, [problem.episodes], 2)
    found.write(tmp_path / "evaluation.json")
    assert json.loads((tmp_path / "evaluation.json").read_text())["query_statistics"] == "stored"
    assert "batch normalization by" in found.table()
    dense = problems.dense()
    plain = amaml.MetaLearner(dense.model, amaml.algorithms.MAML(0.1, 1))
    plain.compile(loss="mse", jit_compile="off")
    found = amaml.evaluate(plain, [dense.episodes], 3)
    assert found.query_statistics is None
    assert "batch normalization" not in found.table()


def test_others_are_refused(learner):
    with pytest.raises(ValueError, match="one of \\('support', 'batch'\\), got 'queries'"):
        amaml.Evaluator(learner, query_statistics="queries")
    with pytest.raises(ValueError, match="query_statistics to be one of support, batch"):
        Experiment(query_statistics="queries")
