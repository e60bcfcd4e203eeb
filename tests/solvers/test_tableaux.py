"""Tableaux of Runge-Kutta methods: the order conditions, and what a step evaluates."""

import numpy as np
import pytest
import tensorflow as tf

from amaml_tf import solvers
from amaml_tf.solvers.system import System

TABLEAUX = [
    solvers.GradientDescent(1.0),
    solvers.Heun(1.0),
    solvers.RungeKutta4(1.0),
    solvers.DormandPrince(),
]

#: Fixed-step methods whose last stage is at the end of the step.
AT_THE_END = ("Heun", "RungeKutta4")


def order_conditions(a, b):
    """The differences of both sides, by their order (Hairer, Nørsett, Wanner I, table II.2.2)."""
    c = a.sum(axis=1)
    yield from ((k, b @ c ** (k - 1) - 1 / k) for k in range(1, 6))
    ac, ac2, ac3, aac = a @ c, a @ c**2, a @ c**3, a @ a @ c
    yield from [
        (3, b @ ac - 1 / 6),
        (4, b @ (c * ac) - 1 / 8),
        (4, b @ ac2 - 1 / 12),
        (4, b @ aac - 1 / 24),
        (5, b @ (c**2 * ac) - 1 / 10),
        (5, b @ (c * ac2) - 1 / 15),
        (5, b @ (c * aac) - 1 / 30),
        (5, b @ ac**2 - 1 / 20),
        (5, b @ ac3 - 1 / 20),
        (5, b @ (a @ (c * ac)) - 1 / 40),
        (5, b @ (a @ ac2) - 1 / 60),
        (5, b @ (a @ aac) - 1 / 120),
    ]


@pytest.mark.parametrize("solver", TABLEAUX, ids=lambda solver: solver.name)
def test_a_tableau_satisfies_the_conditions_of_its_order_and_no_more(solver):
    np.testing.assert_array_equal(np.triu(solver.a), 0)
    found = list(order_conditions(solver.a, solver.b))
    assert max(abs(rest) for order, rest in found if order <= solver.order) < 1e-14
    if solver.order < 5:
        assert max(abs(rest) for order, rest in found if order == solver.order + 1) > 1e-3


def test_the_embedded_method_has_order_4():
    """Its last stage is f at the end of the step: row b of the matrix."""
    solver = solvers.DormandPrince()
    a = np.vstack([np.column_stack([solver.a, np.zeros(6)]), [*solver.b, 0]])
    embedded = np.append(solver.b, 0) - solver.error_weights
    found = list(order_conditions(a, embedded))
    assert max(abs(rest) for order, rest in found if order <= 4) < 1e-14
    assert max(abs(rest) for order, rest in found if order == 5) > 1e-5


@pytest.mark.parametrize(
    ("solver", "evaluations"),
    [
        *zip(TABLEAUX, (1, 2, 4, 6), strict=True),
        (solvers.RungeKuttaChebyshev(step_size=1.0, num_stages=7), 7),
        (solvers.RungeKuttaChebyshev(num_stages=7), 7),
    ],
)
def test_a_step_evaluates_each_stage_once(solver, evaluations):
    """Adaptive methods know f at the start of the step, and evaluate it at the end."""
    times = []

    def derivative(time, state):
        times.append(float(time[0]))
        return -state

    state = tf.ones([1, 2], tf.float64)
    known = solver.adaptive
    solver.step(
        System(derivative, lambda *_: None),
        tf.constant([3.0], tf.float64),
        state,
        -state if known else state[:, :0],
        tf.constant(known),
        tf.constant([0.5], tf.float64),
        tf.constant([evaluations]),
    )
    assert len(times) == evaluations
    assert (times[0] == 3.0) == (not known)
    assert (times[-1] == pytest.approx(3.5, rel=1e-12)) == (known or solver.name in AT_THE_END)
