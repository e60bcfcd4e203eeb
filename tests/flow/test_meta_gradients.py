"""The meta-gradient, checked three ways: unrolled program, central differences, closed form."""

import keras
import numpy as np
import problems
import pytest
import tensorflow as tf

import amaml_tf as amaml

# Float64 leaves about 1e-10 to central differences and to hundreds of steps; a wrong term in an
# adjoint is off by 1e-2 and more.
RTOL = 1e-6

ADAPTIVE = amaml.solvers.DormandPrince(1e-9, 1e-11)


def learner_of(problem, flow, jit_compile=False, run_eagerly=False, **options):
    learner = amaml.MetaLearner(problem.model, amaml.algorithms.AdjointMAML(flow, **options))
    learner.compile("sgd", loss=problem.loss, jit_compile=jit_compile, run_eagerly=run_eagerly)
    return learner


@pytest.mark.long
@pytest.mark.parametrize("num_steps", [1, 10, 100])
@pytest.mark.parametrize("make", [problems.dense, problems.convolutional])
def test_gradient_descent_matches_the_unrolled_program(make, num_steps):
    problem = make()
    expected = problems.unrolled_gradients(problem, 0.05, num_steps)
    flow = amaml.GradientFlow(
        final_time=0.05 * num_steps, solver=amaml.solvers.GradientDescent(0.05)
    )
    for jit_compile in (False, True):
        result = learner_of(problem, flow, jit_compile).meta_gradients(problem.episodes)
        assert problems.relative_error(result.gradients, expected) < RTOL
        np.testing.assert_array_equal(result.diagnostics.forward.num_evaluations, num_steps)
        products = result.diagnostics.backward.num_vector_jacobian_products
        np.testing.assert_array_equal(products, num_steps)


def test_it_works_eagerly():
    problem = problems.dense()
    flow = amaml.GradientFlow(final_time=0.5, solver=amaml.solvers.GradientDescent(0.05))
    result = learner_of(problem, flow, run_eagerly=True).meta_gradients(problem.episodes)
    expected = problems.unrolled_gradients(problem, 0.05, 10)
    assert problems.relative_error(result.gradients, expected) < RTOL


@pytest.mark.long
@pytest.mark.parametrize(
    "solver",
    [
        amaml.solvers.GradientDescent(0.05),
        amaml.solvers.Heun(0.1),
        amaml.solvers.RungeKutta4(0.2),
    ],
    ids=lambda solver: solver.name,
)
@pytest.mark.parametrize("make", [problems.dense, problems.convolutional])
def test_discrete_adjoints_match_central_differences(make, solver):
    problem = make()
    flow = amaml.GradientFlow(final_time=1.0, solver=solver)
    learner = learner_of(problem, flow)
    gradients = learner.meta_gradients(problem.episodes).gradients
    slope, direction = problems.directional_differences(
        problems.loss_after_adaptation(problem, learner), problem.model.trainable_variables
    )
    assert problems.along(gradients, direction) == pytest.approx(slope, rel=RTOL)


@pytest.mark.parametrize(
    ("adjoint", "jit_compile"),
    [("continuous", False), ("continuous", True), ("discrete", True), ("backsolve", False)],
)
def test_linear_flow_matches_its_closed_form(adjoint, jit_compile):
    problem = problems.linear()
    flow = amaml.GradientFlow(
        final_time=2.0, solver=amaml.solvers.DormandPrince(1e-9, 1e-11), adjoint=adjoint
    )
    learner = learner_of(problem, flow, jit_compile)
    result = learner.meta_gradients(problem.episodes)
    expected = problems.linear_solution(problem, 2.0)
    assert problems.relative_error(result.gradients, [expected.gradient]) < RTOL
    forward = result.diagnostics.forward
    for name, value in {
        "status": 0,
        "time": 2.0,
        "max_stages": 6,
        "num_jacobian_products": 0,
        "spectral_radius": 0,
    }.items():
        np.testing.assert_array_equal(getattr(forward, name), value, err_msg=name)
    assert np.all(forward.num_accepted_steps > 10)
    assert np.all(forward.num_evaluations > 6 * forward.num_accepted_steps)
    adapted = learner.adapt(tuple(v[0] for v in problem.episodes[0]))
    np.testing.assert_allclose(adapted.get_weights()[0][:, 0], expected.adapted[0], rtol=1e-7)


@pytest.mark.long
@pytest.mark.parametrize("adjoint", ["continuous", "backsolve"])
def test_solvers_of_tfp_are_taken(adjoint):
    import tensorflow_probability as tfp

    problem = problems.linear()
    expected = problems.linear_solution(problem, 2.0)
    for solver in (tfp.math.ode.DormandPrince(1e-9, 1e-11), tfp.math.ode.BDF(1e-8, 1e-10)):
        flow = amaml.GradientFlow(
            final_time=2.0, solver=solver, adjoint=adjoint, adjoint_solver=ADAPTIVE
        )
        result = learner_of(problem, flow).meta_gradients(problem.episodes)
        assert problems.relative_error(result.gradients, [expected.gradient]) < 1e-5


@pytest.mark.long
def test_stabilised_solver_approaches_the_closed_form_with_its_tolerance():
    problem = problems.linear()
    expected = problems.linear_solution(problem, 2.0)
    for adjoint in ("continuous", "discrete"):
        errors = []
        for rtol in (1e-3, 1e-5):
            solver = amaml.solvers.RungeKuttaChebyshev(rtol, rtol / 10)
            flow = amaml.GradientFlow(final_time=2.0, solver=solver, adjoint=adjoint)
            result = learner_of(problem, flow).meta_gradients(problem.episodes)
            errors.append(problems.relative_error(result.gradients, [expected.gradient]))
        assert errors[0] < 2e-2
        assert errors[1] < errors[0] / 5


@pytest.mark.long
@pytest.mark.parametrize("solver", ["GradientDescent(0.02)", "RungeKutta4(0.05)"])
@pytest.mark.parametrize("adjoint", ["discrete", "continuous"])
def test_few_checkpoints_change_nothing_but_the_evaluations(solver, adjoint):
    problem = problems.dense()
    results = []
    for max_checkpoints in (512, 24):
        flow = amaml.GradientFlow(
            final_time=3.0,
            solver=eval(f"amaml.solvers.{solver}"),
            adjoint=adjoint,
            max_checkpoints=max_checkpoints,
        )
        learner = learner_of(problem, flow, jit_compile=True)
        results.append(learner.meta_gradients(problem.episodes))
    assert problems.relative_error(results[1].gradients, results[0].gradients) < 1e-4
    if adjoint == "discrete":
        assert problems.relative_error(results[1].gradients, results[0].gradients) < 1e-12
        assert not np.any(results[0].diagnostics.backward.num_evaluations)
        recomputed = results[1].diagnostics.backward.num_evaluations.numpy()
        unbounded = results[0].diagnostics.forward.num_evaluations.numpy()
        assert np.all(recomputed <= 1.05 * unbounded)


@pytest.mark.parametrize(
    ("solver", "of_flow", "of_algorithm"),
    [
        ("GradientDescent(0.05)", {}, {"shortest_time": 0.1}),
        pytest.param(
            "GradientDescent(0.05, 20)",
            {"proximal_weight": 0.7},
            {"learn_final_time": True},
            marks=pytest.mark.long,
        ),
        pytest.param(
            "RungeKutta4(0.2)",
            {"proximal_weight": 0.7},
            {"learned_rates": "tensor"},
            marks=pytest.mark.long,
        ),
        pytest.param("Heun(0.1)", {}, {"adapted_layers": True}, marks=pytest.mark.long),
    ],
)
def test_the_unrolled_program_gives_what_the_discrete_adjoint_gives(solver, of_flow, of_algorithm):
    problem = problems.dense()
    if "adapted_layers" in of_algorithm:
        of_algorithm = {"adapted_layers": [problem.model.layers[-1].name]}
    results = []
    for adjoint in ("discrete", "unrolled"):
        made = eval(f"amaml.solvers.{solver}")
        flow = amaml.GradientFlow(final_time=0.4, solver=made, adjoint=adjoint, **of_flow)
        learner = learner_of(problem, flow, **of_algorithm)
        results.append(learner.meta_gradients(problem.episodes))
    expected, found = results
    assert problems.relative_error(found.gradients, expected.gradients) < 1e-12
    for a, b in zip(found.algorithm_gradients, expected.algorithm_gradients, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-10)
    for a, b in zip(
        tf.nest.flatten(found.diagnostics), tf.nest.flatten(expected.diagnostics), strict=True
    ):
        np.testing.assert_allclose(a, b, rtol=1e-10)


@pytest.mark.parametrize("mode", ["on", "off"])
def test_an_unrolled_program_of_embeddings_and_of_pieces_of_the_support_set(mode):
    """Gradients of embeddings are sparse, and the sum over pieces has a list of parts."""
    inputs = keras.Input((3,), dtype="int32")
    x = keras.layers.Embedding(5, 2, dtype="float64")(inputs)
    x = keras.layers.GlobalAveragePooling1D(dtype="float64")(x)
    model = keras.Model(inputs, keras.layers.Dense(1, "tanh", dtype="float64")(x))
    tokens = np.arange(24).reshape(2, 4, 3) % 5
    examples = tokens.astype("int32"), np.cos(np.arange(8.0)).reshape(2, 4, 1)
    results = []
    for adjoint in ("discrete", "unrolled"):
        learner = amaml.MetaLearner(model, amaml.algorithms.MAML(0.3, 3, adjoint=adjoint))
        learner.compile("sgd", loss="mse", vectorize=mode, jit_compile="off", examples_per_step=3)
        results.append(learner.meta_gradients((examples, examples)).gradients)
    assert problems.relative_error(results[1], results[0]) < 1e-12


def test_a_failed_task_of_an_unrolled_program_does_not_reach_the_others():
    problem = problems.dense()
    (x, y), query = problem.episodes
    poisoned = tf.concat([tf.fill(tf.shape(y[:1]), tf.constant(float("inf"), y.dtype)), y[1:]], 0)
    flow = amaml.GradientFlow(
        final_time=0.2, solver=amaml.solvers.GradientDescent(0.05), adjoint="unrolled"
    )
    learner = amaml.MetaLearner(problem.model, amaml.algorithms.AdjointMAML(flow))
    learner.compile("sgd", loss=problem.loss, jit_compile=False, on_failure="drop")
    result = learner.meta_gradients(((x, poisoned), query))
    assert result.diagnostics.num_dropped_tasks == 1
    others = tf.nest.map_structure(lambda v: v[1:], problem.episodes)
    expected = learner.meta_gradients(others).gradients
    assert problems.relative_error(result.gradients, expected) < 1e-12


def test_adaptive_steps_can_be_thinned_too():
    problem = problems.dense()
    gradients = []
    for max_checkpoints in (512, 16):
        solver = amaml.solvers.RungeKuttaChebyshev(1e-5, 1e-7, max_num_steps=200)
        flow = amaml.GradientFlow(final_time=3.0, solver=solver, max_checkpoints=max_checkpoints)
        gradients.append(learner_of(problem, flow).meta_gradients(problem.episodes).gradients)
    assert problems.relative_error(gradients[1], gradients[0]) < 1e-10


def test_a_tape_around_an_adaptation_gives_the_meta_gradient():
    problem = problems.dense()
    flow = amaml.GradientFlow(final_time=1.0, solver=amaml.solvers.GradientDescent(0.05))
    learner = learner_of(problem, flow)
    function, algorithm = learner.function, learner.algorithm
    support, (query_x, query_y) = problem.episodes
    parameters = problem.parameters
    with tf.GradientTape() as tape:
        tape.watch(parameters)
        start = algorithm.start(function, parameters, num_tasks=3)
        adapted = amaml.adapt(flow, function, function.state(), support, start).adapted
        losses = []
        for task in range(3):
            u = function.unravel(adapted[task], start.held[task])
            outputs, _ = function.predict(u, function.state(), query_x[task], adapting=False)
            losses.append(tf.reduce_mean(tf.square(outputs - query_y[task])))
        loss = tf.add_n(losses) / 3
    gradients = tape.gradient(loss, parameters)
    result = learner.meta_gradients(problem.episodes)
    assert problems.relative_error(gradients, result.gradients) < 1e-12
    assert float(loss) == pytest.approx(float(result.loss), rel=1e-12)


@pytest.mark.long
@pytest.mark.parametrize("adjoint", ["discrete", "continuous"])
@pytest.mark.parametrize("solver", [amaml.solvers.GradientDescent(0.05, 1000), ADAPTIVE])
@pytest.mark.parametrize(
    "options",
    [
        {"learn_final_time": True},
        {"learned_rates": "tensor"},
        {"learned_rates": "entry"},
        {"proximal_weight": 0.7},
        {"learn_final_time": True, "learned_rates": "entry", "proximal_weight": 0.7},
    ],
    ids=lambda options: "+".join(options),
)
def test_meta_parameters_of_the_flow_match_central_differences(options, solver, adjoint):
    if adjoint == "continuous" and solver is not ADAPTIVE:
        pytest.skip("the continuous adjoint of Euler's method has Euler's error")
    problem = problems.dense()
    learned = {name: value for name, value in options.items() if name.startswith("learn")}
    of_flow = {name: value for name, value in options.items() if name not in learned}
    flow = amaml.GradientFlow(final_time=1.0, solver=solver, adjoint=adjoint, **of_flow)
    learner = learner_of(problem, flow, **learned)
    result = learner.meta_gradients(problem.episodes)
    variables = [*problem.model.trainable_variables, *learner.algorithm_variables]
    gradients = [*result.gradients, *result.algorithm_gradients]
    for i, (variable, gradient) in enumerate(zip(variables, gradients, strict=True)):
        if variable.name == "log_final_time" and solver is not ADAPTIVE:
            continue  # the number of steps is held fixed, which differences are not
        slope, direction = problems.directional_differences(
            problems.loss_after_adaptation(problem, learner), [variable], seed=i
        )
        assert problems.along([gradient], direction) == pytest.approx(slope, rel=1e-5, abs=1e-9)


def test_final_time_derivative_matches_the_closed_form():
    problem = problems.linear()
    flow = amaml.GradientFlow(final_time=2.0, solver=ADAPTIVE)
    result = learner_of(problem, flow, learn_final_time=True).meta_gradients(problem.episodes)
    expected = 2.0 * problems.linear_solution(problem, 2.0).time_gradient  # of log T
    assert float(result.algorithm_gradients[0]) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("adjoint", ["discrete", "continuous"])
def test_partial_adaptation_matches_central_differences(adjoint):
    problem = problems.dense()
    flow = amaml.GradientFlow(final_time=1.0, solver=ADAPTIVE, adjoint=adjoint)
    name = problem.model.layers[-1].name
    learner = learner_of(problem, flow, adapted_layers=[name])
    gradients = learner.meta_gradients(problem.episodes).gradients
    for i, (variable, gradient) in enumerate(
        zip(problem.model.trainable_variables, gradients, strict=True)
    ):
        slope, direction = problems.directional_differences(
            problems.loss_after_adaptation(problem, learner), [variable], seed=i
        )
        assert problems.along([gradient], direction) == pytest.approx(slope, rel=1e-5)
    adapted = learner.adapt(tuple(v[0] for v in problem.episodes[0]))
    np.testing.assert_array_equal(adapted.get_weights()[0], problem.model.get_weights()[0])
    assert not np.allclose(adapted.get_weights()[2], problem.model.get_weights()[2])


def test_float32_gives_float32_and_nearly_the_same():
    single, double = problems.dense(dtype="float32"), problems.dense()
    double.model.set_weights(single.model.get_weights())
    flow = amaml.GradientFlow(final_time=2.0)
    results = [learner_of(p, flow).meta_gradients(p.episodes) for p in (single, double)]
    assert all(g.dtype == tf.float32 for g in results[0].gradients)
    assert problems.relative_error(results[0].gradients, results[1].gradients) < 1e-3


def test_unknown_adapted_layer_is_refused():
    with pytest.raises(ValueError, match="Expected adapted_layers to name layers"):
        learner_of(problems.dense(), amaml.GradientFlow(), adapted_layers=["nowhere"])


def test_keras_regularizers_enter_the_flow():
    episodes = problems.linear(dtype="float32").episodes
    flow = amaml.GradientFlow(final_time=100.0)
    norms = []
    for strength in (0.0, 5.0):
        regularizer = keras.regularizers.L2(strength)
        layer = keras.layers.Dense(1, kernel_regularizer=regularizer)
        model = keras.Sequential([keras.Input((3,)), layer])
        learner = amaml.MetaLearner(model, amaml.algorithms.AdjointMAML(flow))
        learner.compile("sgd", loss="mse")
        adapted = learner.adapt(tuple(v[0] for v in episodes[0]))
        norms.append(np.linalg.norm(adapted.get_weights()[0]))
    assert norms[1] < 0.5 * norms[0]
