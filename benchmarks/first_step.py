"""Seconds to the first meta-step of models as people bring them, and of each further one.

    python -m benchmarks.first_step --output=benchmark_results

Nothing is set but the optimizer and the loss. Each case trains for 20 meta-steps of two tasks with
four support and four query examples, in a process of its own. The first meta-step is traced, and
perhaps compiled; the way of execution is what "auto" chose. Writes first_step.json.
"""

from __future__ import annotations

import itertools
import json
import time
from typing import TYPE_CHECKING, Any

import numpy as np
from absl import app, flags

from benchmarks.measuring import apart, write

if TYPE_CHECKING:
    import keras
    import tensorflow as tf

MODELS = ("transformer", "lstm", "two_inputs", "mobilenet")
ALGORITHMS = ("maml", "default")
_META_STEPS = 20

_OUTPUT = flags.DEFINE_string("output", "benchmark_results", "Folder for first_step.json.")
_MODELS = flags.DEFINE_multi_enum("model", MODELS, MODELS, "Model to train. Default: all.")
_ALGORITHMS = flags.DEFINE_multi_enum("algorithm", ALGORITHMS, ALGORITHMS, "Default: both.")
_RUN = flags.DEFINE_string("run", None, "Used by the program itself: the model and the algorithm.")


def model_of(name: str) -> keras.Model:
    """Returns a model: three blocks of attention, an LSTM, two inputs, or a public one."""
    import keras

    layers = keras.layers
    if name == "mobilenet":
        return keras.applications.MobileNetV3Small(
            (32, 32, 3), alpha=0.35, minimalistic=True, weights=None, classes=3, dropout_rate=0.0
        )
    if name == "two_inputs":
        inputs = {each: keras.Input((2,), name=each) for each in ("a", "b")}
        x = layers.Dense(16, "tanh")(layers.Concatenate()(list(inputs.values())))
    elif name == "lstm":
        inputs = keras.Input((8, 3))
        x = layers.LSTM(16)(inputs)
    else:
        inputs = keras.Input((8,), dtype="int32")
        x = layers.Embedding(20, 16)(inputs)
        for _ in range(3):
            x = layers.LayerNormalization()(x + layers.MultiHeadAttention(2, 8)(x, x))
            dense = layers.Dense(16)(layers.Dense(32, "gelu")(x))
            x = layers.LayerNormalization()(x + dense)
        x = layers.GlobalAveragePooling1D()(x)
    return keras.Model(inputs, layers.Dense(1)(x))


def examples(model: keras.Model) -> tuple[object, tf.Tensor]:
    """Returns random inputs and targets of two tasks with four examples each."""
    import tensorflow as tf

    rng = np.random.default_rng(0)

    def values(each: Any) -> tf.Tensor:
        shape = (2, 4, *each.shape[1:])
        tokens = each.dtype == "int32"
        found = rng.integers(0, 20, shape) if tokens else rng.normal(size=shape)
        return tf.constant(found, tf.int32 if tokens else tf.float32)

    classes = model.output_shape[-1] > 1
    y = rng.integers(0, 3, (2, 4)) if classes else rng.normal(size=(2, 4, 1)).astype("float32")
    return tf.nest.map_structure(values, model.input), tf.constant(y)


def measure(name: str, kind: str) -> dict[str, Any]:
    """Returns the seconds of one case, measured in this process."""
    import keras
    import tensorflow as tf

    import amaml_tf as amaml

    keras.utils.set_random_seed(0)
    model = model_of(name)
    algorithm = amaml.algorithms.MAML(0.01, 5) if kind == "maml" else None
    learner = amaml.MetaLearner(model, algorithm) if algorithm else amaml.MetaLearner(model)
    learner.compile(
        "adam", loss="mse" if name != "mobilenet" else "sparse_categorical_crossentropy"
    )
    batches = tf.data.Dataset.from_tensors((examples(model), examples(model))).repeat(_META_STEPS)
    ends = [time.perf_counter()]
    ticks = keras.callbacks.LambdaCallback(
        on_train_batch_end=lambda batch, logs: ends.append(time.perf_counter())
    )
    history = learner.fit(batches, verbose=0, callbacks=[ticks]).history
    first, *others = (after - before for before, after in itertools.pairwise(ends))
    return {
        "model": name,
        "algorithm": kind,
        "parameters": model.count_params(),
        "execution": learner.execution.name,
        "first_seconds": first,
        "seconds": float(np.median(others)),
        "loss": history["loss"][-1],
    }


def main(_: list[str]) -> None:
    """Measures one case, or each in a process of its own; prints a table and writes it."""
    if _RUN.value:
        print(json.dumps(measure(*_RUN.value.split())))
        return
    rows = []
    for name, kind in itertools.product(_MODELS.value, _ALGORITHMS.value):
        row = apart("first_step", f"--run={name} {kind}")
        if row is not None:
            rows.append(row)
            print(
                f"{name:12}{kind:9}{row['first_seconds']:8.1f} s{row['seconds']:10.3f} s a step  "
                f"{row['execution']}",
                flush=True,
            )
    write("first_step", rows, _OUTPUT.value)


if __name__ == "__main__":
    app.run(main)
