"""Few inner steps of large models, beside the plain unrolled program.

    python -m benchmarks.few_steps --output=benchmark_results

A meta-gradient of five steps of gradient descent: by the discrete adjoint; by the unrolled one,
which keeps the activations; and by a plain program, a Python loop over the steps under a
`tf.GradientTape`. All of them run task by task, without XLA, which takes minutes to compile such
unrolled programs; `--jit_compile=auto` leaves the choice to the learner. Seconds are medians of
calls in turn in one process. Memory is the peak over what was resident before the first call, in a
process for each. Writes few_steps.json.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import numpy as np
from absl import app, flags

from amaml_tf.episodes import Episodes
from amaml_tf.learner.meta_learner import MetaLearner
from benchmarks.measuring import PeakMemory, apart, in_turn, resident, seconds_of, write

_STEP_SIZE, _NUM_STEPS, _NUM_TASKS = 0.01, 5, 2
WAYS = ("discrete", "unrolled", "plain")

_OUTPUT = flags.DEFINE_string("output", "benchmark_results", "Folder for few_steps.json.")
_JIT_COMPILE = flags.DEFINE_enum("jit_compile", "off", ["auto", "off"], "How to execute them.")
_WAY = flags.DEFINE_enum("way", None, WAYS, "Used by the program itself: the way whose memory.")
_RUN = flags.DEFINE_string("run", None, "Used by the program itself: the model to measure.")


def resnet12() -> tuple[Any, Any]:
    """Returns a ResNet-12 of 8 million parameters and five images of 32x32 for each task."""
    import keras

    layers = keras.layers
    x = inputs = keras.Input((32, 32, 3))
    for filters in (64, 128, 256, 512):
        shortcut = layers.BatchNormalization()(layers.Conv2D(filters, 1)(x))
        for _ in range(3):
            x = layers.Conv2D(filters, 3, padding="same", use_bias=False)(x)
            x = layers.BatchNormalization()(x)
            x = layers.ReLU()(x)
        x = layers.MaxPooling2D()(layers.Add()([x, shortcut]))
    outputs = layers.Dense(5)(layers.GlobalAveragePooling2D()(x))
    images = np.random.default_rng(0).normal(size=(_NUM_TASKS, 5, 32, 32, 3)).astype("float32")
    return keras.Model(inputs, outputs), images


def transformer() -> tuple[Any, Any]:
    """Returns a transformer of 1.2 million parameters and five sequences of 32 for each task."""
    import keras

    layers = keras.layers
    inputs = keras.Input((32,), dtype="int32")
    x = layers.Embedding(256, 128)(inputs)
    for _ in range(6):
        attended = layers.MultiHeadAttention(4, 32)(*[layers.LayerNormalization()(x)] * 2)
        x = layers.Add()([x, attended])
        hidden = layers.Dense(512, activation="gelu")(layers.LayerNormalization()(x))
        x = layers.Add()([x, layers.Dense(128)(hidden)])
    outputs = layers.Dense(5)(layers.GlobalAveragePooling1D()(x))
    return keras.Model(inputs, outputs), _tokens(32)


def lstm() -> tuple[Any, Any]:
    """Returns an LSTM of 64 units and five sequences of 20 for each task."""
    import keras

    layers = keras.layers
    inputs = keras.Input((20,), dtype="int32")
    x = layers.LSTM(64)(layers.Embedding(256, 64)(inputs))
    return keras.Model(inputs, layers.Dense(5)(x)), _tokens(20)


def _tokens(length: int) -> Any:
    return np.random.default_rng(0).integers(0, 256, (_NUM_TASKS, 5, length)).astype("int32")


MODELS: dict[str, Callable[[], tuple[Any, Any]]] = {
    "ResNet-12": resnet12,
    "transformer": transformer,
    "LSTM": lstm,
}

_MODELS = flags.DEFINE_multi_enum("model", list(MODELS), list(MODELS), "Model. Default: all.")


def plain(learner: MetaLearner, episodes: Episodes) -> Callable[[], Any]:
    """Returns the plain unrolled program, executed as the learner is."""
    import tensorflow as tf

    function, way = learner.function, learner.execution
    parameters = [tf.convert_to_tensor(v) for v in learner.model.trainable_variables]
    state = function.state()

    def loss_of(u: Any, examples: Any, adapting: bool) -> tf.Tensor:
        outputs, penalty = function.predict(u, state, examples[0], adapting)
        return function.loss(examples[1], outputs) + penalty

    def one(task: Any) -> tuple[tf.Tensor, list[tf.Tensor]]:
        support, query = task
        with tf.GradientTape(watch_accessed_variables=False) as outer:
            outer.watch(parameters)
            u = parameters
            for _ in range(_NUM_STEPS):
                with tf.GradientTape(watch_accessed_variables=False) as inner:
                    inner.watch(u)
                    loss = loss_of(u, support, adapting=True)
                slopes = inner.gradient(loss, u)
                u = [w - _STEP_SIZE * slope for w, slope in zip(u, slopes, strict=True)]
            loss = loss_of(u, query, adapting=False)
        return loss, [tf.convert_to_tensor(g) for g in outer.gradient(loss, parameters)]

    @tf.function(jit_compile=way.jit_compile, autograph=False)
    def run(episodes: Any) -> tuple[tf.Tensor, list[tf.Tensor]]:
        if way.vectorize:
            losses, gradients = tf.vectorized_map(one, episodes)
        else:
            specs = [tf.TensorSpec(v.shape, v.dtype) for v in parameters]
            losses, gradients = tf.map_fn(
                one,
                episodes,
                fn_output_signature=(tf.TensorSpec([]), specs),
                parallel_iterations=8,
            )
        return tf.reduce_mean(losses), [tf.reduce_mean(g, axis=0) for g in gradients]

    episodes = tf.nest.map_structure(tf.convert_to_tensor, episodes)
    return lambda: [g.numpy() for g in run(episodes)[1]]


def calls_of(name: str) -> tuple[dict[str, Callable[[], Any]], MetaLearner]:
    """Returns what computes the meta-gradient in each way, and the learner."""
    import keras

    import amaml_tf as amaml

    keras.utils.set_random_seed(0)
    model, x = MODELS[name]()
    y = np.tile(np.arange(5), (_NUM_TASKS, 1))
    episodes = ((x, y), (x, y))
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    learners = {}
    for adjoint in ("discrete", "unrolled"):
        algorithm = amaml.algorithms.MAML(_STEP_SIZE, _NUM_STEPS, adjoint=adjoint)
        learners[adjoint] = amaml.MetaLearner(model, algorithm)
        way = _JIT_COMPILE.value
        learners[adjoint].compile("sgd", loss=loss, vectorize=way, jit_compile=way)
    calls = {
        way: lambda learner=learner: [g.numpy() for g in learner.meta_gradients(episodes).gradients]
        for way, learner in learners.items()
    }
    return calls | {"plain": plain(learners["unrolled"], episodes)}, learners["unrolled"]


def measure(name: str) -> dict[str, Any]:
    """Returns the seconds and gradients of the ways, measured in this process."""
    calls, learner = calls_of(name)
    first = {way: seconds_of(call) for way, call in calls.items()}
    exact = np.concatenate([np.ravel(g) for g in calls["plain"]()])
    found = {way: np.concatenate([np.ravel(g) for g in call()]) for way, call in calls.items()}
    return {
        "parameters": learner.model.count_params(),
        "execution": learner.execution.name,
        "first_call_seconds": first,
        "seconds": in_turn(calls, budget=60.0, rounds=15),
        "difference": {
            way: float(np.linalg.norm(g - exact) / np.linalg.norm(exact))
            for way, g in found.items()
        },
    }


def memory_of(name: str, way: str) -> dict[str, Any]:
    """Returns the memory of one way in MiB, measured in this process."""
    call = calls_of(name)[0][way]
    before, memory = resident(), PeakMemory()
    call()
    call()
    return {"peak_mib": memory.stop() - before}


def main(_: list[str]) -> None:
    """Measures one model in one way, or all; prints a table and writes it."""
    if _RUN.value:
        found = memory_of(_RUN.value, _WAY.value) if _WAY.value else measure(_RUN.value)
        print(json.dumps(found))
        return
    rows = []
    print(
        f"{'':14}{'way':10}{'seconds':>9}{'/ plain':>9}{'MiB':>8}{'first s':>9}{'difference':>12}"
    )
    for name in _MODELS.value:
        given = (f"--run={name}", f"--jit_compile={_JIT_COMPILE.value}")
        row = apart("few_steps", *given)
        if row is None:
            continue
        memories = {way: apart("few_steps", *given, f"--way={way}") for way in WAYS}
        row["peak_mib"] = {way: found["peak_mib"] for way, found in memories.items() if found}
        rows.append({"name": name, **row})
        for way in WAYS:
            seconds = row["seconds"][way]
            mib = row["peak_mib"].get(way, float("nan"))
            print(
                f"{name:14}{way:10}{seconds:9.3f}{seconds / row['seconds']['plain']:9.2f}"
                f"{mib:8.0f}{row['first_call_seconds'][way]:9.1f}"
                f"{row['difference'][way]:12.1e}",
                flush=True,
            )
    write("few_steps", rows, _OUTPUT.value)


if __name__ == "__main__":
    app.run(main)
