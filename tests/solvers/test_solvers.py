"""Orders of convergence, stiff problems from the literature, and the contract of TFP."""

import numpy as np
import problems
import pytest
import tensorflow as tf
import tensorflow_probability as tfp

from amaml_tf import solvers
from amaml_tf.solvers import chebyshev_coefficients, loop
from amaml_tf.solvers.diagnostics import NON_FINITE
from amaml_tf.solvers.state_stack import StateStack
from amaml_tf.solvers.system import System


def equal_steps(solver, system, y0, final_time, num_stages):
    """Returns a function of a number of equal steps, taken with `solver.step` alone."""

    @tf.function
    def run(num_steps):
        rows = tf.zeros([1], tf.float64)
        h = rows + final_time / tf.cast(num_steps, tf.float64)
        state = tf.constant([[y0]], tf.float64)
        derivative = system.derivative(rows, state) if solver.adaptive else state[:, :0]

        def advance(n, state, derivative):
            time = h * tf.cast(n, tf.float64)
            stages = tf.fill([1], num_stages)
            step = solver.step(system, time, state, derivative, tf.constant(True), h, stages)
            return n + 1, step.state, step.derivative

        going = (tf.constant(0), state, derivative)
        return tf.while_loop(lambda n, *_: n < num_steps, advance, going)[1]

    return lambda num_steps: run(tf.constant(num_steps, tf.int32)).numpy()[0, 0]


@pytest.mark.parametrize(
    ("solver", "num_stages", "order"),
    [
        (solvers.GradientDescent(1.0), 1, 1),
        (solvers.Heun(1.0), 2, 2),
        (solvers.RungeKutta4(1.0), 4, 4),
        (solvers.DormandPrince(), 6, 5),
        *((solvers.RungeKuttaChebyshev(num_stages=s), s, 2) for s in (2, 5, 20, 50)),
        *(
            (solvers.RungeKuttaChebyshev(step_size=1.0, num_stages=s, order=order), s, order)
            for order, s in ((1, 1), (1, 10), (2, 2), (2, 10))
        ),
    ],
    ids=lambda value: getattr(value, "name", str(value)),
)
def test_order_of_convergence(solver, num_stages, order):
    system, exact = problems.smooth_scalar()
    counts = np.array([32, 64, 128])
    run = equal_steps(solver, system, exact(0.0), 2.0, num_stages)
    errors = [abs(run(n) - exact(2.0)) for n in counts]
    slope = -np.polyfit(np.log(counts), np.log(errors), 1)[0]
    assert slope == pytest.approx(order, abs=0.2)


def solve(solver, ode_fn, y0, times, jit_compile=False):
    run = tf.function(
        lambda: solver.solve(ode_fn, 0.0, tf.constant(y0, tf.float64), times),
        jit_compile=jit_compile,
    )
    return run()


@pytest.mark.long
@pytest.mark.parametrize("jit_compile", [False, True])
def test_heat_equation_on_a_thousand_points(jit_compile):
    n = 1000
    x = np.arange(1, n + 1) / (n + 1)

    def heat(_, y):
        padded = tf.pad(y, [[1, 1]])
        return (padded[2:] - 2 * y + padded[:-2]) * (n + 1.0) ** 2

    y0 = np.sin(np.pi * x) + 0.5 * np.sin(9 * np.pi * x)
    results = solve(solvers.RungeKuttaChebyshev(1e-4, 1e-6), heat, y0, [0.01, 0.1], jit_compile)

    def mode(k, time):
        rate = 4 * (n + 1) ** 2 * np.sin(k * np.pi / (2 * (n + 1))) ** 2
        return np.exp(-rate * time) * np.sin(k * np.pi * x)

    for state, time in zip(results.states.numpy(), (0.01, 0.1), strict=True):
        np.testing.assert_allclose(state, mode(1, time) + 0.5 * mode(9, time), atol=2e-4)
    assert results.diagnostics.status == 0
    radius = 4.0 * (n + 1) ** 2
    assert results.diagnostics.spectral_radius.numpy() == pytest.approx(radius, rel=0.1)


def test_prothero_robinson():
    stiffness = 1e4

    def ode_fn(t, y):
        return -stiffness * (y - tf.cos(t)) - tf.sin(t)

    results = solve(solvers.RungeKuttaChebyshev(1e-5, 1e-7), ode_fn, [1.0], [1.0, 10.0])
    np.testing.assert_allclose(results.states.numpy()[:, 0], np.cos([1.0, 10.0]), atol=1e-4)
    # Euler's method would need 50,000 to be stable.
    assert results.diagnostics.num_ode_fn_evaluations < 15_000


@pytest.mark.long
def test_a_spectrum_over_six_decades():
    eigenvalues = np.linspace(1, 1e6, 1000)
    rates = tf.constant(eigenvalues)
    evaluations = {}
    for solver in (solvers.RungeKuttaChebyshev(1e-3, 1e-4), solvers.DormandPrince(1e-3, 1e-4)):
        results = solve(solver, lambda t, y: -rates * y, np.ones(1000), [0.02])
        assert results.diagnostics.status == 0
        np.testing.assert_allclose(
            results.states[0].numpy(), np.exp(-0.02 * eigenvalues), atol=5e-3
        )
        evaluations[solver.name] = int(results.diagnostics.num_ode_fn_evaluations)
        if solver.name == "runge_kutta_chebyshev":
            radius = results.diagnostics.spectral_radius.numpy()
            assert radius == pytest.approx(1e6, rel=0.1)
    assert evaluations["runge_kutta_chebyshev"] <= 1500
    assert evaluations["dormand_prince"] > 20_000


def test_nested_states_and_times_chosen_by_the_solver():
    def ode_fn(t, state):
        del t
        return {"a": -state["a"], "b": -10.0 * state["b"]}

    y0 = {"a": tf.ones([2, 2], tf.float64), "b": tf.ones([3], tf.float64)}
    times = tfp.math.ode.ChosenBySolver(1.0)
    for solver in (
        solvers.RungeKuttaChebyshev(1e-6, 1e-8),
        solvers.DormandPrince(1e-6, 1e-8),
        solvers.Heun(0.01),
    ):
        results = tf.function(lambda s=solver: s.solve(ode_fn, 0.0, y0, times))()
        t = results.times.numpy()
        assert t[-1] == 1.0
        assert np.all(np.diff(t) > 0)
        assert results.states["a"].shape == (len(t), 2, 2)
        expected = np.exp(-10 * t)
        np.testing.assert_allclose(results.states["b"].numpy()[:, 0], expected, atol=1e-3)


@pytest.mark.long
def test_tfp_differentiates_through_our_solvers():
    y0 = tf.constant([1.0, 2.0], tf.float64)
    with tf.GradientTape() as tape:
        tape.watch(y0)
        solver = solvers.RungeKuttaChebyshev(1e-7, 1e-9)
        y = solver.solve(lambda t, y: -y, 0.0, y0, [1.0]).states[0]
    np.testing.assert_allclose(tape.gradient(y, y0), np.exp([-1.0, -1.0]), rtol=1e-4)


def test_rows_have_their_own_steps():
    """A stiff row neither shortens the steps of another nor, failing, stops it."""
    rates = tf.constant([[1.0], [1e3]], tf.float64)
    system = System(lambda t, y: -rates * y, lambda t, y, v: -rates * v)
    y0 = tf.ones([2, 1], tf.float64)
    solver = solvers.DormandPrince(1e-6, 1e-8)
    run = tf.function(lambda y0: loop.integrate(solver, system, 0.0, 1.0, y0, max_num_steps=5000))
    solution = run(y0)
    steps = solution.diagnostics.num_accepted_steps.numpy()
    assert steps[1] > 10 * steps[0]
    np.testing.assert_array_equal(solution.diagnostics.status, 0)
    solution = run(tf.constant([[1.0], [np.nan]], tf.float64))
    np.testing.assert_array_equal(solution.diagnostics.status, [0, NON_FINITE])
    assert solution.state.numpy()[0, 0] == pytest.approx(np.exp(-1.0), rel=1e-5)


@pytest.mark.parametrize("jit_compile", [False, True])
def test_the_cap_on_steps_holds(jit_compile):
    """y' = y² leaves to infinity at t = 1; no step size reaches beyond."""
    for solver, y0 in (
        (solvers.DormandPrince(max_num_steps=50), 1.0),
        (solvers.RungeKuttaChebyshev(), 1.0),
        (solvers.GradientDescent(1e-3), 1e3),
    ):
        results = solve(solver, lambda t, y: y * y, [y0], [2.0], jit_compile)
        assert results.diagnostics.status < 0


@pytest.mark.parametrize(
    ("capacity", "num_steps", "num_stages", "times"),
    [(16, 100, 1, 2), (16, 135, 1, 2), (16, 500, 1, 3.5), (16, 40, 4, 3), (24, 300, 1, 2)],
)
def test_a_stack_holds_the_last_segment_and_repeats_seldom(capacity, num_steps, num_stages, times):
    """A state is its number in the run: what is read is what was written there."""
    stages = tf.constant(num_stages)

    def written(stack, start, end):
        def step(n, stack):
            stack = stack.with_room(n, n * stages, stages)
            rows = stack.rows
            for j in range(num_stages):
                number = n * stages + j
                rows = rows.write(stack.row(number), tf.cast([[number]], tf.float64))
            return n + 1, stack._replace(rows=rows)

        return tf.while_loop(lambda n, _: n < end, step, (start, stack))[1]

    @tf.function
    def backwards():
        stack = StateStack.empty(capacity, tf.zeros([1, 1], tf.float64))
        stack = written(stack, tf.constant(0), tf.constant(num_steps))

        def reverse(end, stack, missing, count, sound):
            start = tf.where(missing, stack.segment_start, end)
            stack = stack.at_checkpoint(stack.segment_start * stages)
            stack = written(stack, start, end)
            first = stack.segment_start
            numbers = tf.range(first * stages, end * stages)
            rows = tf.map_fn(lambda n: stack.rows.read(stack.row(n))[0, 0], numbers, tf.float64)
            sound &= tf.reduce_all(tf.cast(numbers, tf.float64) == rows)
            stack = stack.without_segment()
            return first, stack, tf.constant(True), count + end - start, sound

        start = (tf.constant(num_steps), stack, tf.constant(False), num_steps, tf.constant(True))
        return tf.while_loop(lambda end, *_: end > 0, reverse, start)[3:]

    count, sound = backwards()
    assert sound
    assert int(count) <= times * num_steps


def test_no_schedule_repeats_less_in_runs_of_many_steps():
    """The least evaluations to reverse m steps beside c free rows, by dynamic programming.

    If they do not all fit, j steps are taken to the next checkpoint, and the steps after it are
    reversed before those that lead to it.
    """
    capacity, most = 24, 305
    least = np.arange(most + 1) * (np.arange(most + 1) + 1) // 2
    for free in range(1, capacity):
        found = np.minimum(np.arange(most + 1), free + 1)
        for m in range(free + 2, most + 1):
            j = np.arange(1, m)
            found[m] = np.min(j + least[m - j] + found[j])
        least = found
    steps = np.flatnonzero(least <= 2 * np.arange(most + 1))
    assert steps[-1] == 302  # the stack, which does not know the number, comes to 300: see above


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (
            lambda: solvers.GradientDescent(0.0),
            "Expected step_size to be above 0 and finite, got 0",
        ),
        (
            lambda: solvers.RungeKuttaChebyshev(rtol=-1),
            "Expected rtol to be above 0 and finite, got -1",
        ),
        (lambda: solvers.RungeKuttaChebyshev(num_stages=1), "Expected num_stages"),
        (lambda: solvers.DormandPrince(safety_factor=2), "Expected safety_factor"),
        (lambda: solvers.Heun(0.1, max_num_steps=0), "Expected max_num_steps"),
    ],
)
def test_wrong_arguments_are_named(make, sentence):
    with pytest.raises(ValueError, match=sentence):
        make()


def test_coefficients_from_a_table_are_those_of_the_closed_form():
    table = chebyshev_coefficients.Table(range(2, 13))
    num_stages = tf.constant([2, 5, 12])
    for j in range(14):
        expected = chebyshev_coefficients.coefficients(num_stages, tf.constant(j), tf.float64)
        found = table(num_stages, tf.constant(j), tf.float64)
        for name in expected._fields:
            np.testing.assert_allclose(getattr(found, name), getattr(expected, name), rtol=1e-10)
