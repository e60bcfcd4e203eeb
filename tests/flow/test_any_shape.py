"""Meta-gradients of networks, tasks and solvers drawn at random, against the unrolled program.

The reference is written out here, in float64, and takes nothing of the library. AMAML_EXAMPLES says
how many are drawn; `make soak` draws many.
"""

import math
import os

import keras
import numpy as np
import problems
import pytest
import tensorflow as tf
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import amaml_tf as amaml

EXAMPLES = int(os.environ.get("AMAML_EXAMPLES", "6"))
#: Stages and weights of the explicit methods.
METHODS: dict[str, tuple[list[list[float]], list[float]]] = {
    "gradient_descent": ([[]], [1.0]),
    "heun": ([[], [1.0]], [0.5, 0.5]),
    "runge_kutta4": ([[], [0.5], [0.0, 0.5], [0.0, 0.0, 1.0]], [1 / 6, 1 / 3, 1 / 3, 1 / 6]),
}
ACTIVATIONS = {"tanh": tf.tanh, "sigmoid": tf.sigmoid, "softplus": tf.math.softplus}


@st.composite
def cases(draw):
    return {
        "inputs": draw(st.integers(1, 3)),
        "hidden": draw(st.lists(st.integers(1, 4), max_size=2)),
        "outputs": draw(st.integers(1, 2)),
        "tasks": draw(st.integers(1, 3)),
        "support": draw(st.integers(1, 4)),
        "query": draw(st.integers(1, 4)),
        "weights": draw(st.sampled_from(["none", "some", "with zeros"])),
        "activation": draw(st.sampled_from(sorted(ACTIVATIONS))),
        "method": draw(st.sampled_from(sorted(METHODS))),
        "step_size": draw(st.floats(0.01, 0.2)),
        "num_steps": draw(st.integers(1, 6)),
        "max_checkpoints": draw(st.sampled_from([None, 6, 9])),
        "proximal_weight": draw(st.sampled_from([0.0, 0.5])),
        "dtype": draw(st.sampled_from(["float64", "float64", "float32"])),
        "seed": draw(st.integers(0, 2**16)),
    }


def episodes_of(case, rng):
    """The sets of examples (x, y) or (x, y, weight), in float64; at least one counts."""

    def examples(count):
        shape = case["tasks"], count
        x, y = rng.normal(size=(*shape, case["inputs"])), rng.normal(size=(*shape, case["outputs"]))
        if case["weights"] == "none":
            return x, y
        weight = rng.uniform(0.5, 2, shape)
        if case["weights"] == "with zeros":
            weight[:, 1:] *= rng.random((case["tasks"], count - 1)) < 0.5
        return x, y, weight

    return examples(case["support"]), examples(case["query"])


def network(u, x, activation):
    for kernel, bias in zip(u[:-2:2], u[1:-2:2], strict=True):
        x = ACTIVATIONS[activation](x @ kernel + bias)
    return x @ u[-2] + u[-1]


def loss_of(u, examples, case):
    x, y, *weight = examples
    losses = tf.reduce_mean((network(u, x, case["activation"]) - y) ** 2, axis=-1)
    weight = weight[0] if weight else np.ones(len(x))
    return tf.reduce_sum(weight * losses) / np.count_nonzero(weight)


def slopes(u, start, support, case):
    with tf.GradientTape() as tape:
        tape.watch(u)
        loss = loss_of(u, support, case)
    pull = case["proximal_weight"]
    gradients = tape.gradient(loss, u)
    return [-g - pull * (w - w0) for g, w, w0 in zip(gradients, u, start, strict=True)]


def adapted(start, support, case):
    """The parameters after the steps of the explicit method."""
    a, b = METHODS[case["method"]]
    u, h = start, case["step_size"]
    for _ in range(case["num_steps"]):
        stages: list[list[tf.Tensor]] = []
        for row in a:
            at = [
                w + h * sum(c * k[n] for c, k in zip(row, stages, strict=True))
                for n, w in enumerate(u)
            ]
            stages.append(slopes(at, start, support, case))
        u = [w + h * sum(c * k[n] for c, k in zip(b, stages, strict=True)) for n, w in enumerate(u)]
    return u


def reference(theta, episodes, case):
    """The mean loss after adaptation, and its gradient."""
    losses, gradients = [], []
    for task in range(case["tasks"]):
        support, query = (tuple(each[task] for each in examples) for examples in episodes)
        start = [tf.constant(value, tf.float64) for value in theta]
        with tf.GradientTape() as tape:
            tape.watch(start)
            loss = loss_of(adapted(start, support, case), query, case)
        losses.append(float(loss))
        gradients.append([g.numpy() for g in tape.gradient(loss, start)])
    return np.mean(losses), [np.mean(column, axis=0) for column in zip(*gradients, strict=True)]


def learner_of(case):
    dtype = case["dtype"]
    hidden = [keras.layers.Dense(n, case["activation"], dtype=dtype) for n in case["hidden"]]
    model = keras.Sequential(
        [
            keras.Input((case["inputs"],), dtype=dtype),
            *hidden,
            keras.layers.Dense(case["outputs"], dtype=dtype),
        ]
    )
    flow = amaml.GradientFlow(
        final_time=case["step_size"] * case["num_steps"],
        solver=amaml.solvers.REGISTRY.find(case["method"])(case["step_size"]),
        max_checkpoints=case["max_checkpoints"],
        proximal_weight=case["proximal_weight"],
    )
    learner = amaml.MetaLearner(model, amaml.algorithms.AdjointMAML(flow))
    learner.compile("sgd", loss="mse", run_eagerly=True)  # each case would be traced for seconds
    return learner


@pytest.mark.filterwarnings("ignore")
@settings(
    max_examples=EXAMPLES,
    deadline=None,
    derandomize=EXAMPLES < 100,
    database=None,
    suppress_health_check=list(HealthCheck),
)
@given(cases())
def test_meta_gradients_match_the_unrolled_program(case):
    keras.utils.set_random_seed(case["seed"])
    learner = learner_of(case)
    episodes = episodes_of(case, np.random.default_rng(case["seed"]))
    theta = [v.numpy().astype("float64") for v in learner.model.trainable_variables]
    loss, gradients = reference(theta, episodes, case)
    cast = tf.nest.map_structure(lambda v: tf.constant(v, case["dtype"]), episodes)
    found = learner.meta_gradients(cast)
    tolerance = 1e-10 if case["dtype"] == "float64" else 1e-3
    assert math.isclose(float(found.loss), loss, rel_tol=tolerance)
    assert problems.relative_error(found.gradients, gradients) < tolerance
