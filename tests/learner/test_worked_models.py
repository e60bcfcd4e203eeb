"""Models as people bring them train by default: nothing is set but the optimizer and the loss."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import amaml_tf as amaml

LAYERS = keras.layers
META_STEPS = 20


def mobile_net():
    """The smallest public model of Keras, in its smallest form."""
    return keras.applications.MobileNetV3Small(
        input_shape=(32, 32, 3), alpha=0.35, minimalistic=True, weights=None, classes=3
    )


def transformer(num_blocks=3, width=8, steps=6):
    inputs = keras.Input((steps,), dtype="int32")
    x = LAYERS.Embedding(20, width)(inputs)
    for _ in range(num_blocks):
        x = LAYERS.LayerNormalization()(x + LAYERS.MultiHeadAttention(2, width // 2)(x, x))
        x = LAYERS.LayerNormalization()(x + LAYERS.Dense(width)(LAYERS.Dense(width, "gelu")(x)))
    return keras.Model(inputs, LAYERS.Dense(1)(LAYERS.GlobalAveragePooling1D()(x)))


def lstm():
    inputs = keras.Input((6, 2))
    return keras.Model(inputs, LAYERS.Dense(1)(LAYERS.LSTM(8)(inputs)))


def of_two_inputs():
    inputs = {"left": keras.Input((3,), name="left"), "right": keras.Input((2,), name="right")}
    x = LAYERS.Dense(8, "tanh")(LAYERS.Concatenate()(list(inputs.values())))
    return keras.Model(inputs, LAYERS.Dense(1)(x))


MODELS = {m.__name__: m for m in (transformer, lstm, of_two_inputs, mobile_net)}


def examples(model, rng, num_tasks=2, count=4):
    def inputs(each):
        shape = (num_tasks, count, *each.shape[1:])
        if each.dtype == "int32":
            return tf.constant(rng.integers(0, 20, shape), tf.int32)
        return tf.constant(rng.normal(size=shape), tf.float32)

    x = tf.nest.map_structure(inputs, model.input)
    if model.output_shape[-1] > 1:
        return x, tf.constant(rng.integers(0, model.output_shape[-1], (num_tasks, count)))
    return x, tf.constant(rng.normal(size=(num_tasks, count, 1)), tf.float32)


#: The default algorithm is the first; the default final time is longer than a test may take.
ALGORITHMS = {
    "adjoint": lambda: amaml.algorithms.AdjointMAML(amaml.GradientFlow(final_time=0.02)),
    "maml": lambda: amaml.algorithms.MAML(0.01, 1),
}


@pytest.mark.long
@pytest.mark.parametrize(
    ("name", "kind"),
    # A flow of MobileNetV3Small takes minutes: see `benchmarks.first_step`.
    [(n, kind) for n in MODELS for kind in ALGORITHMS if (n, kind) != ("mobile_net", "adjoint")],
)
def test_a_model_trains_by_default(name, kind):
    keras.utils.set_random_seed(0)
    model, rng = MODELS[name](), np.random.default_rng(0)
    batch = examples(model, rng), examples(model, rng)
    learner = amaml.MetaLearner(model, ALGORITHMS[kind]())
    loss = "sparse_categorical_crossentropy" if model.output_shape[-1] > 1 else "mse"
    learner.compile(keras.optimizers.Adam(0.003), loss=loss)
    data = tf.data.Dataset.from_tensors(batch).repeat(META_STEPS // 4)
    losses = learner.fit(data, epochs=4, verbose=0).history["loss"]
    assert learner.optimizer.iterations == META_STEPS
    assert np.all(np.isfinite(losses))
    if name != "mobile_net":  # twenty steps of four examples are too few for its many layers
        assert losses[-1] < losses[0]
    # On a CPU, large models would take minutes to vectorise and to compile.
    on_cpu = not tf.config.list_physical_devices("GPU")
    if on_cpu:
        ways = {"of_two_inputs": (True, True, False), "transformer": (False, False, True)}
        assert learner.execution == ways.get(name, (False, False, False))
