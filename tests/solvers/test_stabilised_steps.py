"""Stabilised steps without error control: order, reach, the derivative, and what is refused."""

import numpy as np
import problems
import pytest
import tensorflow as tf

import amaml_tf as amaml
from amaml_tf import solvers
from amaml_tf.solvers import loop
from amaml_tf.solvers.system import System


def stability_limit(order, num_stages):
    """The largest step times radius: the stability polynomial of a step is 1 at most until there.

    It is T_s(w0 + w1 z), scaled and shifted, which is bounded until w0 + w1 z = -1. There z is
    -(w0 + 1) / w1, with w1 = T_s(w0) / T_s'(w0) in order 1, and T_s'(w0) / T_s''(w0) in order 2.
    """
    w0 = 1 + {1: 0.05, 2: 2 / 13}[order] / num_stages**2
    chebyshev = np.polynomial.Chebyshev.basis(num_stages)
    return (w0 + 1) * chebyshev.deriv(order)(w0) / chebyshev.deriv(order - 1)(w0)


@pytest.mark.parametrize("num_stages", [2, 20])
@pytest.mark.parametrize(("order", "reach"), [(1, 1.93), (2, 0.65)])
def test_steps_are_stable_up_to_their_limit(order, reach, num_stages):
    limit = stability_limit(order, num_stages)
    if num_stages > 2:
        assert limit == pytest.approx(reach * num_stages**2, rel=0.06)
    spectrum = np.linspace(0.0, 1.0, 50)[1:]
    rates = tf.constant([0.98 * limit * spectrum, 1.1 * limit * spectrum])
    system = System(lambda t, y: -rates * y, lambda t, y, v: -rates * v)
    solver = solvers.RungeKuttaChebyshev(step_size=1.0, num_stages=num_stages, order=order)
    start = tf.ones([2, 49], tf.float64)
    run = tf.function(lambda: loop.integrate(solver, system, 0.0, 60.0, start, max_num_steps=60))
    size = np.abs(run().state.numpy()).max(axis=1)
    assert size[0] < 1
    assert size[1] > 2


def unrolled(problem, step_size, num_steps, num_stages, order):
    """The meta-gradient by reverse mode through the program, by Chebyshev polynomials of numpy."""
    epsilon = {1: 0.05, 2: 2 / 13}[order]
    w0 = 1 + epsilon / num_stages**2
    t = [np.polynomial.Chebyshev.basis(j) for j in range(num_stages + 1)]
    first, second = ([p.deriv(k)(w0) for p in t] for k in (1, 2))
    value = [p(w0) for p in t]
    if order == 1:
        w1, b = value[-1] / first[-1], [1 / v for v in value]
    else:
        w1 = first[-1] / second[-1]
        b = [s / f**2 for s, f in zip(second[2:], first[2:], strict=True)]
        b = [b[0], b[0], *b]
    function = problem.function()
    state = function.state()

    def slope(u, x, y):
        with tf.GradientTape() as tape:
            tape.watch(u)
            outputs, _ = function.predict(u, state, x, adapting=True)
            loss = function.loss(y, outputs)
        return [-g for g in tape.gradient(loss, u)]

    def combine(*terms):
        return [
            tf.add_n([w * v for (w, _), v in zip(terms, row, strict=True)])
            for row in zip(*(vectors for _, vectors in terms), strict=True)
        ]

    def step(u, x, y):
        h, f0 = step_size, slope(u, x, y)
        before, now = u, combine((1.0, u), (h * b[1] * w1, f0))
        for j in range(2, num_stages + 1):
            mu, nu = 2 * b[j] * w0 / b[j - 1], -b[j] / b[j - 2]
            mu_tilde = 2 * b[j] * w1 / b[j - 1]
            gamma = -(1 - b[j - 1] * value[j - 1]) * mu_tilde
            f = slope(now, x, y)
            new = combine(
                (1 - mu - nu, u), (mu, now), (nu, before), (h * mu_tilde, f), (h * gamma, f0)
            )
            before, now = now, new
        return now

    @tf.function
    def gradients(support_x, support_y, query_x, query_y):
        with tf.GradientTape() as tape:
            tape.watch(parameters)
            u = parameters
            for _ in range(num_steps):
                u = step(u, support_x, support_y)
            outputs, _ = function.predict(u, state, query_x, adapting=False)
            loss = function.loss(query_y, outputs)
        return tape.gradient(loss, parameters)

    parameters = problem.parameters
    (support_x, support_y), (query_x, query_y) = problem.episodes
    tasks = zip(support_x, support_y, query_x, query_y, strict=True)
    per_task = [gradients(*task) for task in tasks]
    return [np.mean([g.numpy() for g in column], axis=0) for column in zip(*per_task, strict=True)]


def meta_gradients(problem, flow, jit_compile):
    learner = amaml.MetaLearner(problem.model, amaml.algorithms.AdjointMAML(flow))
    learner.compile("sgd", loss=problem.loss, jit_compile=jit_compile)
    return learner.meta_gradients(problem.episodes)


@pytest.mark.parametrize(
    ("order", "num_stages", "max_checkpoints", "jit_compile"),
    [(1, 4, None, False), (2, 5, 7, False), (2, 2, 4, True)],
)
def test_the_meta_gradient_is_that_of_the_unrolled_program(
    order, num_stages, max_checkpoints, jit_compile
):
    problem = problems.dense()
    solver = solvers.RungeKuttaChebyshev(step_size=0.3, num_stages=num_stages, order=order)
    flow = amaml.GradientFlow(final_time=0.9, solver=solver, max_checkpoints=max_checkpoints)
    result = meta_gradients(problem, flow, jit_compile)
    expected = unrolled(problem, 0.3, 3, num_stages, order)
    assert problems.relative_error(result.gradients, expected) < 1e-10
    done = result.diagnostics
    np.testing.assert_array_equal(done.forward.num_evaluations, 3 * num_stages)
    products = done.backward.num_vector_jacobian_products
    np.testing.assert_array_equal(products, 3 * num_stages)
    recomputed = np.all(done.backward.num_evaluations.numpy() > 0)
    assert recomputed == (max_checkpoints is not None)


def test_one_stage_of_order_1_is_gradient_descent():
    problem = problems.dense()
    expected = problems.unrolled_gradients(problem, 0.05, 4)
    solver = solvers.RungeKuttaChebyshev(step_size=0.05, num_stages=1, order=1)
    flow = amaml.GradientFlow(final_time=0.2, solver=solver)
    found = meta_gradients(problem, flow, jit_compile=False).gradients
    assert problems.relative_error(found, expected) < 1e-12


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"step_size": 0.1}, "Expected num_stages with step_size"),
        ({"order": 1}, "Expected step_size and num_stages with order=1"),
        ({"order": 3}, "Expected order to be 1 or 2"),
        ({"step_size": 0.1, "num_stages": 1}, "Expected num_stages to be at least 2, got 1"),
        ({"step_size": 0.1, "num_stages": 3, "rtol": 0.1}, "Expected rtol or step_size, got both"),
        ({"step_size": -1.0, "num_stages": 3}, "Expected step_size to be above 0"),
    ],
)
def test_what_does_not_fit_is_refused(arguments, sentence):
    with pytest.raises(amaml.UsageError, match=sentence):
        solvers.RungeKuttaChebyshev(**arguments)


def test_the_step_of_a_fixed_solver_is_not_that_of_its_adaptive_adjoint_solver():
    flow = amaml.Experiment(
        solver="gradient_descent",
        step_size=0.1,
        adjoint="continuous",
        adjoint_solver="runge_kutta_chebyshev",
        rtol=1e-4,
    ).make_flow()
    assert flow.solver.step_size == 0.1
    assert flow.adjoint_solver is not None
    assert flow.adjoint_solver.adaptive
    assert flow.adjoint_solver.rtol == 1e-4
    with pytest.raises(amaml.UsageError, match="step_size"):
        amaml.Experiment(
            solver="dormand_prince",
            step_size=0.1,
            adjoint="continuous",
            adjoint_solver="runge_kutta_chebyshev",
        ).make_flow()
