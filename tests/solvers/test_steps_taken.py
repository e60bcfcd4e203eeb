"""Which steps a solver takes: the first, how many, how they grow, and when the radius is due."""

import inspect

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_probability as tfp

from amaml_tf import solvers
from amaml_tf.solvers import diagnostics
from amaml_tf.solvers.adopt import as_one_step, solve_on_grid
from amaml_tf.solvers.loop import integrate
from amaml_tf.solvers.runge_kutta_chebyshev import _Memory
from amaml_tf.solvers.solution import num_fixed_steps, num_fixed_steps_of_rows
from amaml_tf.solvers.system import System

DECAY = System(lambda t, y: -y, lambda t, y, vector: -vector)


@pytest.mark.parametrize("solver", [solvers.DormandPrince, solvers.RungeKuttaChebyshev])
def test_the_first_step_is_the_one_asked_for(solver):
    start = tf.ones([2, 3], tf.float64)
    found = integrate(
        solver(first_step_size=0.0123),
        DECAY,
        0.0,
        1.0,
        start,
        max_num_steps=100,
        capacity=300,
    ).recorded
    np.testing.assert_allclose(found.step_sizes[0], [0.0123] * 2, rtol=1e-12)


def test_fixed_steps_are_the_fewest_that_are_not_longer():
    """A step may be longer by a hundred-thousandth: 0.3 / 0.1 is above 3."""
    intervals = np.array([0.05, 0.1, 0.1 + 0.2, 0.30001, 0.31, 1.0])
    expected = [1, 1, 3, 4, 4, 10]
    assert [num_fixed_steps(0.1, interval) for interval in intervals] == expected
    found = num_fixed_steps_of_rows(0.1, tf.constant(intervals))
    np.testing.assert_array_equal(found, expected)


def test_the_radius_is_estimated_after_three_steps_or_a_rejected_one():
    solver = solvers.RungeKuttaChebyshev()
    rates = tf.constant([[1.0], [2.0], [3.0], [4.0]], tf.float64)
    system = System(lambda t, y: -rates * y, lambda t, y, vector: -rates * vector)
    state = tf.ones([4, 2], tf.float64)
    fresh = solver.initial_memory(state)
    assert len(np.unique(fresh[1][0])) == 2, "a vector that no eigenvector is orthogonal to"
    memory = _Memory(fresh[0] + 0.5, fresh[1], tf.constant([2, 3, 0, 3]))
    rejected = tf.constant([False, False, True, False])
    active = tf.constant([True, True, True, False])
    radius, products = solver.refresh(system, rates[:, 0], state, memory, rejected, active)
    np.testing.assert_allclose(radius[0], [0.5, 2.0, 3.0, 0.5], rtol=1e-12)
    np.testing.assert_array_equal(radius[2], [3, 1, 1, 4])  # age
    np.testing.assert_array_equal(products, [0, 2, 2, 0])


def test_the_next_step_has_the_size_at_which_its_error_is_the_tolerance():
    """Nearly: the safety factor of it, and within a tenth and ten times the step."""
    solver = solvers.DormandPrince(safety_factor=0.9)
    ratios = tf.constant([1.0, 32.0, 1 / 1024, 0.0, 1e30], tf.float64)
    found = solver.step_size_factor(ratios)
    np.testing.assert_allclose(found, [0.9, 0.45, 3.6, 10.0, 0.1], rtol=1e-12)


def test_stages_are_enough_for_the_radius_and_no_more():
    """s stages reach 0.65 (s² - 1), the radius is taken 1.2 times as large."""
    solver = solvers.RungeKuttaChebyshev(max_num_stages=9)
    fresh = solver.initial_memory(tf.ones([4, 1], tf.float64))
    memory = _Memory(tf.constant([0.0, 10.0, 25.0, 1e6], tf.float64), *fresh[1:])
    stages = solver.plan(memory, tf.ones([4], tf.float64))
    np.testing.assert_array_equal(stages, [2, 5, 7, 9])


def test_statuses_are_those_of_the_documentation():
    named = ("COMPLETED", "NON_FINITE", "STEP_LIMIT", "STEP_TOO_SMALL")
    assert [getattr(diagnostics, name) for name in named] == [0, -1, -2, -3]
    assert diagnostics.RUNNING > 0  # failures alone are negative


def test_a_solver_of_tfp_counts_the_steps_of_its_grid():
    start = tf.constant([[1.0], [2.0]], tf.float64)
    solver = solvers.BDF(rtol=1e-6, atol=1e-8)
    found = solve_on_grid(solver, DECAY, 0.5, start, 4)
    np.testing.assert_allclose(found.state, np.exp(-0.5) * start, rtol=1e-4)
    done, trajectory = found.diagnostics, found.recorded
    for name, expected in {
        "status": diagnostics.COMPLETED,
        "time": 0.5,
        "num_accepted_steps": 4,
        "num_rejected_steps": 0,
        "num_jacobian_products": 0,
        "max_stages": 1,
        "spectral_radius": 0,
    }.items():
        np.testing.assert_array_equal(getattr(done, name), [expected] * 2, err_msg=name)
    assert done.num_evaluations.dtype == tf.int32
    assert done.num_evaluations[0] == done.num_evaluations[1] > 4
    times = np.repeat([[0.0], [0.125], [0.25], [0.375]], 2, axis=1)
    np.testing.assert_allclose(trajectory.times, times, rtol=1e-12)
    np.testing.assert_allclose(trajectory.step_sizes, np.full((4, 2), 0.125), rtol=1e-12)
    np.testing.assert_array_equal(trajectory.num_stages, np.ones((4, 2)))
    np.testing.assert_array_equal(trajectory.offsets, range(4))
    states = trajectory.stack.rows.buffer.stack()
    np.testing.assert_allclose(states[:4], np.exp(-times)[..., np.newaxis] * start, rtol=1e-4)


def test_defaults_are_those_of_tfp():
    """But for the tolerances and the cap on steps: TFP's solver need not end without it."""
    ours, theirs = (
        {name: each.default for name, each in inspect.signature(kind).parameters.items()}
        for kind in (solvers.DormandPrince, tfp.math.ode.DormandPrince)
    )
    differ = {name for name in ours if name in theirs and ours[name] != theirs[name]}
    assert differ <= {"rtol", "atol", "max_num_steps", "name"}
    for kind in (solvers.RungeKuttaChebyshev, solvers.GradientDescent, solvers.OneStepSolver):
        parameters = inspect.signature(kind).parameters
        for name in ("make_adjoint_solver_fn", "validate_args"):
            assert parameters[name].default == theirs[name]
    assert (
        vars(solvers.RungeKuttaChebyshev()).items()
        >= {
            "rtol": 3e-3,
            "atol": 5e-6,
            "first_step_size": None,
            "safety_factor": 0.8,
            "min_step_size_factor": 0.1,
            "max_step_size_factor": 10.0,
            "max_num_steps": 4096,
            "max_num_stages": 1000,
            "num_stages": None,
            "refresh_every": 3,
            "power_iterations": 50,
            "order": 2,
        }.items()
    )


@pytest.mark.parametrize("cap", [{}, {"max_num_steps": 77}])
def test_the_solver_of_tfp_becomes_ours_with_its_options(cap):
    options = {
        "rtol": 1e-5,
        "atol": 1e-7,
        "first_step_size": 0.01,
        "safety_factor": 0.7,
        "min_step_size_factor": 0.2,
        "max_step_size_factor": 5.0,
    }
    found = as_one_step(tfp.math.ode.DormandPrince(**options, **cap))
    assert isinstance(found, solvers.DormandPrince)
    assert vars(found).items() >= {**options, "max_num_steps": 16384, **cap}.items()


def test_the_bounds_of_arguments_are_taken():
    assert solvers.Heun(0.1, max_num_steps=1).max_num_steps == 1
    solver = solvers.RungeKuttaChebyshev(
        safety_factor=1.0, max_num_steps=1, max_num_stages=2, refresh_every=1, power_iterations=1
    )
    assert solver.max_num_stages == 2
    assert solvers.RungeKuttaChebyshev(num_stages=2).max_num_stages == 2
    for wrong in (
        {"max_num_stages": 1},
        {"refresh_every": 0},
        {"power_iterations": 0},
        {"safety_factor": 0.0},
        {"min_step_size_factor": 0.0},
        {"min_step_size_factor": 1.0},
        {"max_step_size_factor": 1.0},
        {"first_step_size": 0.0},
        {"atol": 0.0},
        {"rtol": float("inf")},
        {"max_num_steps": 0},
        {"max_num_steps": 10**7 + 1},
    ):
        with pytest.raises(ValueError, match=f"^Expected {next(iter(wrong))} to be "):
            solvers.RungeKuttaChebyshev(**wrong)


@pytest.mark.parametrize("start", [-1.0, 0.0])
def test_steps_become_too_small_before_what_has_no_value(start):
    """f is NaN from the middle of the interval on."""
    system = System(
        lambda t, y: tf.where(t[:, tf.newaxis] < start + 1.0, y * 0 + 1, np.nan), lambda *_: None
    )
    y = tf.zeros([1, 1], tf.float64)
    run = tf.function(
        lambda: integrate(solvers.DormandPrince(), system, start, start + 2.0, y, max_num_steps=500)
    )
    found = run()
    assert found.diagnostics.status[0] == diagnostics.NON_FINITE
    np.testing.assert_allclose(found.diagnostics.time, [start + 1.0], atol=1e-13)
    np.testing.assert_allclose(found.state, [[1.0]], rtol=1e-12)


def test_times_of_their_own_begin_before_zero():
    solver, start = solvers.Heun(0.25), tf.constant([2.0], tf.float64)
    chosen = tfp.math.ode.ChosenBySolver(0.5)
    found = solver.solve(lambda t, y: tf.ones_like(y), -1.0, start, chosen)
    assert found.diagnostics.status == 0
    times = [-0.75, -0.5, -0.25, 0.0, 0.25, 0.5]
    np.testing.assert_allclose(found.times, times, rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(found.states[:, 0], np.add(times, 3.0), rtol=1e-12)
    given = solver.solve(lambda t, y: tf.ones_like(y), -1.0, start, [-0.5, 0.5])
    np.testing.assert_allclose(given.states[:, 0], [2.5, 3.5], rtol=1e-12)
    assert given.diagnostics.num_accepted_steps == 6


@pytest.mark.parametrize("known", ["start", "end"])
def test_fixed_steps_of_an_unknown_interval_need_a_cap(known):
    solver, start = solvers.Heun(0.25), tf.constant([2.0], tf.float64)

    @tf.function(autograph=False)  # which would raise errors of its own kind
    def run(time):
        first, last = (0.0, time) if known == "start" else (time, 1.0)
        chosen = tfp.math.ode.ChosenBySolver(last)
        return solver.solve(lambda t, y: -y, first, start, chosen).states

    with pytest.raises(ValueError, match=r"^Expected Heun to have a cap .* Give it max_num_steps"):
        run(tf.constant(0.5, tf.float64))


def test_steps_with_a_table_of_coefficients_are_the_same():
    solver = solvers.RungeKuttaChebyshev()
    table = solver.tabulated(6)
    assert table.max_num_stages == 6
    times = tf.zeros([3], tf.float64)
    state = tf.constant([[1.0], [2.0], [3.0]], tf.float64)
    arguments = (state, -state, tf.constant(True), times + 0.3, tf.constant([2, 5, 6]))
    expected, found = (each.step(DECAY, times, *arguments) for each in (solver, table))
    for name in ("state", "error"):
        one, other = getattr(found, name), getattr(expected, name)
        np.testing.assert_allclose(one, other, rtol=1e-9, atol=1e-14, err_msg=name)
    fixed = solvers.RungeKuttaChebyshev(num_stages=5)
    assert fixed.tabulated(3) is fixed
