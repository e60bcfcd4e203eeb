"""What holds for every solver of the registry."""

import inspect
from typing import Any

import numpy as np
import problems
import pytest
import tensorflow as tf
import tensorflow_probability as tfp

import amaml_tf as amaml
from amaml_tf import solvers
from amaml_tf.solvers.loop import integrate
from amaml_tf.solvers.system import System


def needs_step_size(kind: Any) -> bool:
    parameter = inspect.signature(kind).parameters.get("step_size")
    return parameter is not None and parameter.default is parameter.empty


# What makes each solver, beside its name in the registry. One has two kinds of steps.
ARGUMENTS: dict[str, dict[str, Any]] = {
    name: {"step_size": 0.02} if needs_step_size(kind) else {}
    for name, kind in solvers.REGISTRY.items()
}
for order in (1, 2):
    ARGUMENTS[f"runge_kutta_chebyshev of order {order}"] = {
        "step_size": 0.02,
        "num_stages": 3,
        "order": order,
    }

every_solver = pytest.mark.parametrize("name", ARGUMENTS)


def make(name: str) -> tfp.math.ode.Solver:
    return solvers.REGISTRY[name.split()[0]](**ARGUMENTS[name])


@every_solver
def test_it_is_a_solver_of_tfp(name):
    assert isinstance(make(name), tfp.math.ode.Solver)


@every_solver
def test_it_solves_a_linear_problem(name):
    rates, times = tf.constant([1.0, 3.0], tf.float64), [0.3, 1.0]
    results = tf.function(
        lambda: make(name).solve(lambda t, y: -rates * y, 0.0, tf.ones(2, tf.float64), times)
    )()
    expected = np.exp(-np.outer(times, rates))
    np.testing.assert_allclose(results.states, expected, rtol=0.1)
    assert not np.array_equal(results.states, expected)


@every_solver
def test_the_origin_of_time_changes_nothing(name):
    solver = make(name)
    if not isinstance(solver, solvers.OneStepSolver):
        pytest.skip("a solver of TensorFlow Probability, whose steps are its own")

    @tf.function
    def run(start):
        return integrate(
            solver,
            System(
                lambda t, y: -y * (t - start)[:, tf.newaxis],
                lambda t, y, vector: -vector * (t - start)[:, tf.newaxis],
            ),
            start,
            start + 1.0,
            tf.ones([1, 2], tf.float64),
            max_num_steps=200,
        )

    early, late = (run(tf.constant(start, tf.float64)) for start in (0.0, 2.0))
    np.testing.assert_allclose(late.state, early.state, rtol=1e-6)
    np.testing.assert_array_equal(
        late.diagnostics.num_accepted_steps, early.diagnostics.num_accepted_steps
    )
    np.testing.assert_array_equal(late.diagnostics.status, early.diagnostics.status)


@every_solver
@pytest.mark.parametrize("jit_compile", [False, True])
def test_it_ends_where_there_is_no_solution(name, jit_compile):
    """y' = y² leaves to infinity at t = 1."""
    if name == "bdf":
        pytest.skip("TensorFlow Probability's own BDF need not end")

    @tf.function(jit_compile=jit_compile)
    def run():
        return make(name).solve(lambda t, y: y * y, 0.0, tf.constant([100.0]), [2.0])

    assert run().diagnostics.status < 0


@every_solver
def test_its_meta_gradient_is_near_to_the_closed_form(name):
    problem, solver = problems.linear(), make(name)
    adjoint = "discrete" if isinstance(solver, solvers.OneStepSolver) else "continuous"
    flow = amaml.GradientFlow(final_time=1.0, solver=solver, adjoint=adjoint)
    learner = amaml.MetaLearner(problem.model, amaml.algorithms.AdjointMAML(flow))
    learner.compile(loss=problem.loss, jit_compile=False)
    result = learner.meta_gradients(problem.episodes)
    expected = problems.linear_solution(problem, 1.0).gradient
    assert problems.relative_error(result.gradients, [expected]) < 5e-2


@every_solver
def test_it_can_be_chosen_by_its_name(name):
    given = dict(ARGUMENTS[name])
    if "order" in given:
        given["solver_order"] = given.pop("order")
    adjoint = None if isinstance(make(name), solvers.OneStepSolver) else "continuous"
    flow = amaml.Experiment(solver=name.split()[0], adjoint=adjoint, **given).make_flow()
    assert type(flow.solver) is type(make(name))
    for argument, value in ARGUMENTS[name].items():
        assert getattr(flow.solver, argument) == value
