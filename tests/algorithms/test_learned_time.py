"""The final time is learned, wherever it starts."""

import math

import keras
import problems
import pytest
import tensorflow as tf

import amaml_tf as amaml

pytestmark = pytest.mark.long


def test_it_ends_at_the_same_value_from_a_tenth_and_from_ten():
    """On sine waves seen at five points: shorter runs underfit, longer ones overfit."""
    keras.utils.set_random_seed(0)
    family = amaml.tasks.REGISTRY["sinusoid"](num_support=5, num_query=10)
    solver = amaml.solvers.RungeKuttaChebyshev(1e-2, 1e-3)
    model = amaml.models.multilayer_perceptron(
        family.input_shape, family.num_outputs, hidden_units=(20, 20)
    )

    def learner_of(flow, **learned):
        learner = amaml.MetaLearner(model, amaml.algorithms.AdjointMAML(flow, **learned))
        learner.compile(keras.optimizers.Adam(1e-2), loss=family.loss)
        return learner

    learner_of(amaml.GradientFlow(final_time=0.5, solver=solver)).fit(
        family.episodes("train", batch_size=10, num_batches=100), verbose=0
    )
    episodes = next(iter(family.episodes("test", batch_size=10, num_batches=1)))
    learner = learner_of(amaml.GradientFlow(solver=solver), learn_final_time=True)
    (log_time,) = learner.algorithm_variables

    def learned_from(start):
        log_time.assign(math.log(start))
        # No momentum: it would carry T over the optimum, into the long runs beyond.
        rate = keras.optimizers.schedules.CosineDecay(0.3, 25)
        optimizer = keras.optimizers.RMSprop(rate)
        optimizer.build([log_time])
        for _ in range(25):
            optimizer.apply(learner.meta_gradients(episodes).algorithm_gradients, [log_time])
        return float(learner.algorithm.final_time())

    short, long = learned_from(0.1), learned_from(10.0)
    assert short == pytest.approx(long, rel=0.1)
    assert 1 < short < 10


def test_it_grows_no_further_than_its_bound():
    problem = problems.dense()

    def learned(bound):
        algorithm = amaml.algorithms.AdjointMAML(
            amaml.GradientFlow(final_time=0.05), learn_final_time=True, max_final_time=bound
        )
        learner = amaml.MetaLearner(problem.model, algorithm)
        learner.compile(keras.optimizers.Adam(0.03), loss=problem.loss)
        learner.fit(tf.data.Dataset.from_tensors(problem.episodes).repeat(20), verbose=0)
        return float(learner.algorithm.final_time())

    assert learned(None) > 0.07
    assert learned(0.06) == pytest.approx(0.06, rel=1e-9)
