"""Tasks and examples in pieces: what the whole batch gives, to rounding."""

import keras
import numpy as np
import problems
import pytest
import tensorflow as tf

import amaml_tf as amaml
from amaml_tf.functional.model import FunctionalModel
from amaml_tf.learner.parts import Part, in_pieces

FLOW = amaml.GradientFlow(final_time=0.3, solver=amaml.solvers.GradientDescent(0.1))


def learner_of(problem, algorithm, **options):
    learner = amaml.MetaLearner(problem.model, algorithm)
    learner.compile(
        "sgd", loss=problem.loss, **{"vectorize": "off", "jit_compile": "off"} | options
    )
    return learner


def assert_same(one, other):
    for name in ("loss", "gradients", "algorithm_gradients", "losses", "outputs"):
        tf.nest.map_structure(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-14),
            getattr(one, name),
            getattr(other, name),
        )
    np.testing.assert_array_equal(one.diagnostics.forward.status, 0)
    assert one.diagnostics.num_dropped_tasks == other.diagnostics.num_dropped_tasks
    assert (one.diagnostics.backward is None) == (other.diagnostics.backward is None)


@pytest.mark.parametrize("name", amaml.algorithms.REGISTRY)
def test_tasks_in_pieces_give_the_same_meta_gradient(name):
    problem = problems.dense(num_tasks=5)
    whole, pieces = (
        learner_of(
            problem,
            problems.algorithm(name, FLOW),
            run_eagerly=True,
            tasks_per_step=size,
            task_clip_norm=0.5,
        )
        for size in (None, 2)
    )
    assert_same(pieces.meta_gradients(problem.episodes), whole.meta_gradients(problem.episodes))


def test_times_that_are_spread_over_a_batch():
    problem = problems.dense(num_tasks=5)
    algorithm = amaml.algorithms.AdjointMAML(FLOW, shortest_time=0.1)
    whole, pieces = (
        learner_of(problem, algorithm, run_eagerly=True, tasks_per_step=size) for size in (None, 3)
    )
    assert_same(pieces.meta_gradients(problem.episodes), whole.meta_gradients(problem.episodes))


@pytest.mark.long
def test_compiled_pieces_of_unequal_sizes():
    """An adaptive solver, learned rates and time, with XLA."""
    flow = amaml.GradientFlow(final_time=1.0)
    algorithm = amaml.algorithms.AdjointMAML(flow, learned_rates="entry", learn_final_time=True)
    problem = problems.dense(num_tasks=5)
    options = {"vectorize": "auto", "jit_compile": "auto"}
    whole, pieces = (
        learner_of(problem, algorithm, **options, tasks_per_step=size) for size in (None, 3)
    )
    assert_same(pieces.meta_gradients(problem.episodes), whole.meta_gradients(problem.episodes))


@pytest.mark.parametrize("size", [None, 2])
def test_dropped_tasks_and_metrics(size):
    """One task of five fails: the mean is over the four others, as if it had not been there."""
    problem = problems.dense(num_tasks=5)
    (sx, sy), query = problem.episodes
    broken = ((tf.tensor_scatter_nd_update(sx, [[3]], [sx[3] * np.nan]), sy), query)
    sound = tf.nest.map_structure(lambda v: tf.gather(v, [0, 1, 2, 4]), problem.episodes)
    learner = learner_of(
        problem,
        problems.algorithm("maml", FLOW),
        metrics=["mae"],
        on_failure="drop",
        tasks_per_step=size,
        run_eagerly=True,
    )
    found, expected = learner.meta_gradients(broken), learner.meta_gradients(sound)
    assert int(found.diagnostics.num_dropped_tasks) == 1
    for one, other in zip(found.gradients, expected.gradients, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-12)
    np.testing.assert_allclose(found.loss, expected.loss, rtol=1e-12)
    logs, others = (
        learner.evaluate(tf.data.Dataset.from_tensors(batch), verbose=0, return_dict=True)
        for batch in (broken, sound)
    )
    assert logs.pop("dropped_tasks") == 1
    assert others.pop("dropped_tasks") == 0
    assert logs == pytest.approx(others, rel=1e-6)


def test_fit_with_batches_of_any_size():
    """Keras traces for sizes that only the run knows, once batches have had several sizes."""
    problem = problems.dense(num_tasks=7)
    tasks = tf.data.Dataset.from_tensor_slices(problem.episodes)
    first = problem.model.get_weights()
    ends = []
    for size in (None, 2):
        problem.model.set_weights(first)
        learner = learner_of(
            problem, problems.algorithm("maml", FLOW), metrics=["mae"], tasks_per_step=size
        )
        history = learner.fit(tasks.batch(5), verbose=0).history
        ends.append((problem.model.get_weights(), history))
    for one, other in zip(ends[0][0], ends[1][0], strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-12)
    assert ends[0][1]["mae"] == pytest.approx(ends[1][1]["mae"], rel=1e-6)


def test_a_piece_begins_when_the_one_before_has_ended():
    order = []

    def note(first):
        order.append(("begins", int(first)))
        order.append(("ends", int(first)))
        return first

    @tf.function(autograph=False)
    def run(numbers):
        def program(piece):
            value = tf.py_function(note, [piece[0]], tf.int32)
            return Part([tf.ensure_shape(value, [])], piece)

        return in_pieces(program, numbers, 3)

    part = run(tf.range(8))
    assert [n for what, n in order if what == "begins"] == [0, 3, 6]
    np.testing.assert_array_equal(part.rows, np.arange(8))
    assert int(part.sums[0]) == 9


def test_sizes_that_are_no_sizes():
    problem = problems.dense()
    with pytest.raises(ValueError, match="tasks_per_step to be 1 or more, got 0"):
        learner_of(problem, problems.algorithm("maml", FLOW), tasks_per_step=0)


EXAMPLES = {
    "mean": ("mse", None),
    "sum": (keras.losses.MeanSquaredError(reduction="sum"), None),
    "a function": (lambda y, p: tf.abs(y - p), None),
    "weights": ("mse", [1.0, 0.5, 0.0, 2.0, 1.0, 0.0]),
    "a mean of weights": (
        keras.losses.MeanSquaredError(reduction="mean_with_sample_weight"),
        [1.0, 0.5, 0.0, 2.0, 1.0, 3.0],
    ),
}


@pytest.mark.parametrize("name", EXAMPLES)
def test_support_sets_in_pieces(name):
    """Gradients and Hessian-vector products, those of the held parameters too."""
    loss, weight = EXAMPLES[name]
    problem = problems.dense(num_tasks=2)
    problem.model.layers[0].kernel.regularizer = keras.regularizers.L2(0.1)
    functions = [
        FunctionalModel(
            problem.model,
            loss,
            adapted=[True, True, False, False],
            examples_per_step=size,
            vectorize=size == 4,
        )
        for size in (None, 3, 4, 9)
    ]
    (x, y), _ = problem.episodes
    examples = (x, y) if weight is None else (x, y, tf.constant([weight, weight], x.dtype))
    state = functions[0].state()
    adapted, held = functions[0].initialization(2)
    direction = tf.cos(tf.range(2 * adapted.shape[1], dtype=x.dtype))
    direction = tf.reshape(direction, adapted.shape)
    whole, *others = [
        (
            f.gradient(adapted, held, state, *examples),
            *f.curvature(adapted, held, state, direction, *examples),
        )
        for f in functions
    ]
    for found in others:
        for one, expected in zip(found, whole, strict=True):
            np.testing.assert_allclose(one, expected, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("name", ["adjoint_maml", "implicit_maml", "joint_training"])
def test_meta_gradients_of_support_sets_in_pieces(name):
    problem = problems.dense(num_tasks=3)
    whole, pieces = (
        learner_of(
            problem,
            problems.algorithm(name, FLOW),
            examples_per_step=size,
            jit_compile=jit,
            vectorize=jit,
        )
        for size, jit in ((None, "off"), (4, "on"))
    )
    assert_same(pieces.meta_gradients(problem.episodes), whole.meta_gradients(problem.episodes))


class Centered(keras.layers.Layer):
    """Subtracts the mean over the examples."""

    def call(self, x):
        return x - tf.reduce_mean(x, axis=0, keepdims=True)


@pytest.mark.parametrize(
    ("layer", "loss", "message"),
    [
        (keras.layers.BatchNormalization(), "mse", "no batch normalization with examples_per_step"),
        (keras.layers.Dropout(0.5), "mse", "no dropout or other noise with examples_per_step=2"),
        (Centered(), "mse", "whose outputs for an example do not depend on the other examples"),
        (
            keras.layers.ActivityRegularization(0.1),
            "mse",
            "no activity regularizers and no add_loss",
        ),
        (None, lambda y, p: tf.reduce_max(tf.abs(y - p)), "a sum or a mean over examples"),
        (None, keras.losses.Dice(), "a sum or a mean over examples"),
    ],
)
def test_what_does_not_add_up_over_examples(layer, loss, message):
    layers = [layer] if layer is not None else []
    model = keras.Sequential([keras.Input((2,)), *layers, keras.layers.Dense(1)])
    (sx, sy), query = tf.nest.map_structure(
        lambda v: tf.cast(v, tf.float32), problems.dense().episodes
    )
    learner = amaml.MetaLearner(model, amaml.algorithms.MAML(0.1, 1))

    def run():
        learner.compile("sgd", loss=loss, examples_per_step=2, jit_compile="off", vectorize="off")
        learner.meta_gradients(((sx, sy), query))

    with pytest.raises(amaml.UsageError, match=message):
        run()
