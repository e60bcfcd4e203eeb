"""A flow that does not arrive says so: the task, the time, and what may help. It never hangs."""

import keras
import numpy as np
import problems
import pytest
import tensorflow as tf

import amaml_tf as amaml
from amaml_tf.flow import buffers

SOLVERS = {
    "descent": lambda: amaml.solvers.GradientDescent(0.05),
    "dormand_prince": lambda: amaml.solvers.DormandPrince(max_num_steps=200),
    "chebyshev": lambda: amaml.solvers.RungeKuttaChebyshev(max_num_steps=200),
}


def unbounded_below(y_true, y_pred):
    return -tf.reduce_mean(tf.square(tf.square(y_pred)) + 0.0 * y_true)


def learner_of(solver, loss="mse", on_failure="raise", **options):
    problem = problems.dense(dtype="float32")
    flow = amaml.GradientFlow(final_time=50.0, solver=solver)
    learner = amaml.MetaLearner(problem.model, amaml.algorithms.AdjointMAML(flow))
    learner.compile(keras.optimizers.SGD(0.1), loss=loss, on_failure=on_failure, **options)
    return learner, problem.episodes


def poisoned(episodes, task=1):
    (support_x, support_y), query = episodes
    bad = np.array(support_x)
    bad[task, 0] = np.nan
    return (tf.constant(bad), support_y), query


@pytest.mark.long
@pytest.mark.parametrize("name", SOLVERS)
@pytest.mark.parametrize("how", [{"jit_compile": True}, {"jit_compile": False}])
def test_nan_inputs_name_the_task_and_the_time(name, how):
    learner, episodes = learner_of(SOLVERS[name](), **how)
    with pytest.raises(amaml.AdaptationError, match=r"task 1 of the batch .*at time 0.* of 50"):
        learner.meta_gradients(poisoned(episodes))


def test_nan_inputs_eagerly():
    learner, episodes = learner_of(SOLVERS["chebyshev"](), run_eagerly=True)
    with pytest.raises(amaml.AdaptationError, match=r"task 1 of the batch"):
        learner.meta_gradients(poisoned(episodes))


@pytest.mark.long
@pytest.mark.parametrize("name", SOLVERS)
@pytest.mark.parametrize("jit_compile", [True, False])
def test_a_loss_without_a_minimum_ends(name, jit_compile):
    learner, episodes = learner_of(SOLVERS[name](), loss=unbounded_below, jit_compile=jit_compile)
    with pytest.raises(amaml.AdaptationError, match=r"Adaptation failed for task \d .*at time"):
        learner.meta_gradients(episodes)
    with pytest.raises(amaml.AdaptationError, match="Adaptation failed for task 0"):
        learner.adapt(tuple(v[0] for v in episodes[0]))


@pytest.mark.parametrize("jit_compile", [True, False])
def test_fit_raises_and_leaves_the_variables_alone(jit_compile):
    learner, episodes = learner_of(SOLVERS["descent"](), jit_compile=jit_compile)
    before = learner.model.get_weights()
    batches = tf.data.Dataset.from_tensors(poisoned(episodes))
    with pytest.raises(amaml.AdaptationError, match=r"^Adaptation failed for task 1.*NaN"):
        learner.fit(batches, verbose=0)
    for value, expected in zip(learner.model.get_weights(), before, strict=True):
        np.testing.assert_array_equal(value, expected)
    with pytest.raises(amaml.AdaptationError, match="task 1"):
        learner.evaluate(batches, verbose=0)


def test_failed_tasks_can_be_dropped():
    learner, episodes = learner_of(SOLVERS["descent"](), on_failure="drop")
    result = learner.meta_gradients(poisoned(episodes))
    assert int(result.diagnostics.num_dropped_tasks) == 1
    others = tf.nest.map_structure(lambda v: tf.gather(v, [0, 2]), episodes)
    expected = learner.meta_gradients(others)
    assert problems.relative_error(result.gradients, expected.gradients) < 1e-5
    assert float(result.loss) == pytest.approx(float(expected.loss), rel=1e-5)
    history = learner.fit(tf.data.Dataset.from_tensors(poisoned(episodes)), verbose=0).history
    assert history["dropped_tasks"] == [1]
    assert history["loss"][0] == pytest.approx(float(result.loss), rel=1e-5)


@pytest.mark.long
def test_under_a_users_own_xla_a_failure_is_nan_and_has_a_status():
    learner, episodes = learner_of(SOLVERS["descent"]())
    function, algorithm = learner.function, learner.algorithm
    support = poisoned(episodes)[0]

    @tf.function(jit_compile=True)
    def run():
        parameters = [tf.convert_to_tensor(v) for v in learner.model.trainable_variables]
        start = algorithm.start(function, parameters, num_tasks=3)
        return amaml.adapt(algorithm.flow, function, function.state(), support, start)

    adaptation = run()
    np.testing.assert_array_equal(adaptation.diagnostics.status < 0, [False, True, False])
    assert np.all(np.isnan(adaptation.adapted[1]))
    assert np.all(np.isfinite(adaptation.adapted[0]))


def unrolled(step_size, **options):
    solver = amaml.solvers.GradientDescent(step_size)
    return amaml.GradientFlow(solver=solver, adjoint="unrolled", **options)


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda: amaml.GradientFlow(final_time=0.0), "Expected final_time to be above 0"),
        (lambda: amaml.GradientFlow(adjoint="exact"), "Expected adjoint to be one of"),
        (
            lambda: amaml.GradientFlow(max_checkpoints=1),
            "Expected max_checkpoints to be at least 2",
        ),
        (lambda: amaml.GradientFlow(memory_budget=0.0), "Expected memory_budget to be above 0"),
        (lambda: amaml.GradientFlow(max_checkpoints=9, memory_budget=1.0), "got both"),
        (lambda: amaml.GradientFlow(adjoint="unrolled"), "Expected a solver with fixed steps"),
        (lambda: unrolled(0.01), "Expected at most 200 steps .*, got 500"),
        (lambda: unrolled(0.1, max_checkpoints=9), "Expected no max_checkpoints"),
        (lambda: unrolled(0.1, memory_budget=9.0), "Expected no memory_budget"),
        (lambda: amaml.GradientFlow(solver="euler"), "Expected solver to be a tfp"),
        (lambda: amaml.GradientFlow(solver=amaml.solvers.BDF()), "adjoint='continuous'"),
        (
            lambda: amaml.algorithms.AdjointMAML(
                amaml.GradientFlow(solver=amaml.solvers.GradientDescent(0.1)),
                learn_final_time=True,
            ),
            "Give it max_num_steps",
        ),
        (lambda: amaml.GradientFlow(proximal_weight=-1.0), "Expected proximal_weight"),
        (
            lambda: amaml.algorithms.AdjointMAML(max_final_time=9.0),
            "Expected learn_final_time with max_",
        ),
        (
            lambda: amaml.algorithms.AdjointMAML(learn_final_time=True, max_final_time=4.0),
            "Expected max_final_time to be at least the final_time 5.0",
        ),
    ],
)
def test_wrong_flows_are_refused(make, sentence):
    with pytest.raises(ValueError, match=sentence):
        make()


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ({"max_checkpoints": 4}, "Expected max_checkpoints to be at least 5"),
        ({"memory_budget": 1e-3}, "Expected memory_budget to be at least 1, .* got 0.001"),
    ],
)
def test_too_little_memory_for_a_step_is_refused(given, sentence):
    problem = problems.dense(units=50)
    flow = amaml.GradientFlow(solver=amaml.solvers.RungeKutta4(0.1), **given)
    learner = amaml.MetaLearner(problem.model, amaml.algorithms.AdjointMAML(flow))
    learner.compile("sgd", loss=problem.loss)
    with pytest.raises(ValueError, match=sentence):
        learner.meta_gradients(problem.episodes)


def test_what_the_machine_cannot_hold_is_refused_before_the_run(monkeypatch, tmp_path):
    limit = tmp_path / "memory.max"
    monkeypatch.setattr(buffers, "_LIMIT_OF_CONTAINER", limit)
    states = tf.TensorSpec([1000, 10**9], tf.float32)
    for sentence in (
        r"got 1000 tasks with 1,000,000,000 adapted parameters, which need about 126659.9 GiB",
        r"smaller batches of tasks, adapt fewer layers \(adapted_layers\), or keep fewer states",
    ):
        with pytest.raises(ValueError, match=sentence):
            buffers.refuse_too_many(18, states)
    limit.write_text(f"{2**30}\n", encoding="ascii")
    with pytest.raises(ValueError, match=r"fits into the 1.0 GiB of this machine"):
        buffers.refuse_too_many(18, tf.TensorSpec([2, 10**7], tf.float32))
    limit.write_text("max\n", encoding="ascii")
    buffers.refuse_too_many(18, tf.TensorSpec([2, 10**6], tf.float32))


def test_fixed_steps_keep_all_states_that_fit():
    def kept(num_steps):
        solver = amaml.solvers.GradientDescent(0.001)
        return buffers.capacity_of(solver, num_steps, None, None, tf.zeros([5, 1185]))

    assert [kept(n) for n in (5, 4096, 4200, 5000)] == [5, 4096, 4200, 5000]  # 5,000 are 113 MiB
    # 6,000 are above 128 MiB. With 110 states beside the two of a step, 110 * 111 / 2 = 6,105 steps
    # take none more than twice, and with 109 only 5,995.
    assert kept(6000) == 110 + 2


def test_the_memory_that_is_given_is_used():
    descent, adaptive = amaml.solvers.GradientDescent(0.001), amaml.solvers.DormandPrince()
    state = tf.zeros([4, 2**16], tf.float32)  # 1 MiB

    def kept(solver, num_steps, state=state, budget=None):
        return buffers.capacity_of(solver, num_steps, None, budget, state)

    assert kept(adaptive, 1000, budget=100.5) == 100
    assert kept(descent, 50, budget=100.5) == 50, "no more than the run has"
    assert kept(adaptive, 1000) == 2 * 7, "8 MiB do not do: two steps of six stages, and their ends"
    assert kept(descent, 1000) == 45 + 2
    assert kept(descent, 1000, tf.zeros([4, 2**26])) == 13, "128 MiB hold none"
    assert kept(adaptive, 1000, tf.zeros([4, 2**12])) == 128
    unknown = tf.TensorSpec([None, 2**13], tf.float32)  # counts as 32 tasks
    assert kept(adaptive, 1000, unknown, 10.0) == 10


def test_steps_leave_a_third_of_the_states_for_checkpoints():
    flow = amaml.GradientFlow()
    found = [flow._bounded_solver(states).max_num_stages for states in (9, 4, 2)]
    assert found == [6, 2, 2]


def test_flows_are_made_as_documented():
    flow = amaml.GradientFlow()
    assert (flow.final_time, flow.adjoint, flow.proximal_weight) == (5.0, "discrete", 0.0)
    assert flow.solver.order == 2
    assert flow.adjoint_solver is flow.max_checkpoints is flow.memory_budget is None
    descent = amaml.solvers.GradientDescent(0.1)
    amaml.GradientFlow(final_time=20.0, solver=descent, adjoint="unrolled")  # 200 steps, not more
    with pytest.raises(ValueError, match=r"at most 200 steps .*, got 201"):
        amaml.GradientFlow(final_time=20.1, solver=descent, adjoint="unrolled")


@pytest.mark.long
def test_nothing_is_computed_again_where_the_states_of_4200_steps_fit():
    """They are 95 MiB. The gradient is that of a linear model, λ <- (I - h H) λ in every step."""
    num_steps, step_size = 4200, 1e-3
    rng = np.random.default_rng(0)
    x = rng.normal(size=(3, 4, 1975)).astype("float32") / np.sqrt(1975)
    y = rng.normal(size=(3, 4, 1)).astype("float32")
    model = keras.Sequential([keras.Input((1975,)), keras.layers.Dense(1, use_bias=False)])
    flow = amaml.GradientFlow(
        final_time=num_steps * step_size, solver=amaml.solvers.GradientDescent(step_size)
    )
    learner = amaml.MetaLearner(model, amaml.algorithms.AdjointMAML(flow))
    learner.compile("sgd", loss="mse")
    result = learner.meta_gradients(((x, y), (x, y)))
    backward = result.diagnostics.backward
    assert backward is not None
    np.testing.assert_array_equal(backward.num_evaluations, 0)
    gradients = []
    for a, b in zip(x.astype(float), y.astype(float), strict=True):
        u, slope = model.get_weights()[0].astype(float), lambda u, a=a, b=b: a.T @ (a @ u - b) / 2
        for _ in range(num_steps):
            u = u - step_size * slope(u)
        bar = slope(u)
        for _ in range(num_steps):
            bar = bar - step_size * (a.T @ (a @ bar)) / 2
        gradients.append(bar)
    assert problems.relative_error(result.gradients, [np.mean(gradients, axis=0)]) < 1e-4


def test_the_sentence_has_none_of_the_quotes_of_tensorflow():
    learner, episodes = learner_of(SOLVERS["descent"]())
    with pytest.raises(amaml.AdaptationError) as raised:
        learner.fit(tf.data.Dataset.from_tensors(poisoned(episodes)), verbose=0)
    assert "of 50: values became infinite or NaN" in str(raised.value)
    assert not set(str(raised.value)) & set('"\\')
