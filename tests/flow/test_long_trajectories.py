"""The network problem of the paper: five Alpine tasks of 100 examples, 2-32-32-1, float64."""

import keras
import numpy as np
import problems
import pytest
import tensorflow as tf

import amaml_tf as amaml
from amaml_tf.flow.vector_field import Constants, vector_field

pytestmark = pytest.mark.long

SOLVERS = amaml.solvers
REFERENCE = SOLVERS.DormandPrince(1e-10, 1e-12, max_num_steps=65536)


class Network:
    def __init__(self):
        keras.utils.set_random_seed(0)
        self.family = amaml.tasks.REGISTRY["alpine"](
            num_support=100, num_query=100, dtype="float64"
        )
        self.model = amaml.models.multilayer_perceptron(
            self.family.input_shape, self.family.num_outputs, dtype="float64"
        )
        self.episodes = next(iter(self.family.episodes("test", batch_size=5, num_batches=1)))
        self._references = {}

    def learner(self, **flow):
        algorithm = amaml.algorithms.AdjointMAML(amaml.GradientFlow(**flow))
        learner = amaml.MetaLearner(self.model, algorithm)
        learner.compile("sgd", loss=self.family.loss)
        return learner

    def meta_gradients(self, **flow):
        return self.learner(**flow).meta_gradients(self.episodes)

    def error(self, result, final_time):
        """Relative to the exact flow's meta-gradient."""
        if final_time not in self._references:
            reference = self.meta_gradients(final_time=final_time, solver=REFERENCE)
            self._references[final_time] = reference.gradients
        return problems.relative_error(result.gradients, self._references[final_time])


@pytest.fixture(scope="module")
def network():
    return Network()


@pytest.mark.parametrize(
    ("solver", "discrete_error", "continuous_error"),
    # About twice what was measured. A lost factor or term is wrong by a tenth and more.
    [
        (SOLVERS.DormandPrince(1e-10, 1e-12), 1e-12, 5e-9),
        (SOLVERS.DormandPrince(1e-7, 1e-9), 8e-7, 5e-7),
        (SOLVERS.RungeKuttaChebyshev(1e-7, 1e-8), 4e-5, 3e-5),
        (SOLVERS.RungeKutta4(0.05), 5e-6, 3e-6),
        (SOLVERS.Heun(0.01), 3e-6, 5e-5),
        (SOLVERS.GradientDescent(0.01), 2.5e-3, 5e-3),
    ],
    ids=lambda value: getattr(value, "name", None),
)
def test_solvers_and_adjoints_agree_with_the_exact_flow(
    network, solver, discrete_error, continuous_error
):
    for adjoint, limit in (("discrete", discrete_error), ("continuous", continuous_error)):
        result = network.meta_gradients(final_time=5.0, solver=solver, adjoint=adjoint)
        assert network.error(result, 5.0) < limit


@pytest.mark.parametrize(
    ("final_time", "largest_error", "gradients", "products"),
    [(5.0, 2e-3, 60, 120), (50.0, 2e-2, 350, 600)],
)
def test_the_defaults_are_accurate_and_cheap(
    network, final_time, largest_error, gradients, products
):
    result = network.meta_gradients(final_time=final_time)
    forward, backward = result.diagnostics.forward, result.diagnostics.backward
    assert network.error(result, final_time) < largest_error
    assert np.max(forward.num_evaluations + backward.num_evaluations) <= gradients
    made = forward.num_jacobian_products + backward.num_vector_jacobian_products
    assert np.max(made) <= products


@pytest.mark.parametrize(
    "solver",
    [SOLVERS.RungeKuttaChebyshev(1e-3, 1e-4), SOLVERS.DormandPrince(1e-3, 1e-5)],
    ids=lambda solver: solver.name,
)
def test_discrete_adjoints_of_adaptive_solvers_match_central_differences(network, solver):
    """Of the same steps, taken again from other starts: accepted steps are held fixed."""
    learner = network.learner(final_time=5.0, solver=solver)
    function, flow = learner.function, learner.algorithm.flow
    parameters = [tf.convert_to_tensor(v) for v in network.model.trainable_variables]
    start = learner.algorithm.start(function, parameters, num_tasks=5)
    support, query = network.episodes

    @tf.function(jit_compile=True, autograph=False)
    def recorded():
        constants = Constants(start.held, start.rates, start.adapted[:, :0])
        system = vector_field(function, function.state(), support, constants)
        solution = flow.solve(system, start.adapted, 5.0, record=True)
        _, slope, _, _ = function.query_gradient(
            solution.state, start.held, function.state(), *query
        )
        adjoint = flow.adjoint_of(system, solution, slope, constants)
        return solution.trajectory._replace(stack=()), adjoint.state

    trajectory, gradient = recorded()

    @tf.function(jit_compile=True, autograph=False)
    def losses_from(state):
        constants = Constants(start.held, start.rates, start.adapted[:, :0])
        system = vector_field(function, function.state(), support, constants)

        def advance(n, state):
            taken = trajectory.step(n)
            unknown = tf.zeros_like(state)
            step = solver.step(
                system,
                taken.time,
                state,
                unknown,
                tf.constant(False),
                taken.step_size,
                taken.num_stages,
            )
            moved = (taken.step_size > 0)[:, tf.newaxis]
            return n + 1, tf.where(moved, step.state, state)

        _, state = tf.while_loop(
            lambda n, _: n < trajectory.num_steps, advance, (tf.constant(0), state)
        )
        return function.query(state, start.held, function.state(), *query)[0]

    direction = np.random.default_rng(0).normal(size=start.adapted.shape)
    direction /= np.linalg.norm(direction, axis=1, keepdims=True)
    epsilon = 1e-5
    above, below = (losses_from(start.adapted + sign * epsilon * direction) for sign in (1, -1))
    slopes = (above - below) / (2 * epsilon)
    np.testing.assert_allclose(np.sum(gradient * direction, axis=1), slopes, rtol=1e-6, atol=1e-9)
