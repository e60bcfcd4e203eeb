"""The dense network of the regression experiments."""

from collections.abc import Sequence

import keras

from amaml_tf.models.initializers import glorot_initializers
from amaml_tf.models.registry import REGISTRY


@REGISTRY.register("mlp")
def multilayer_perceptron(
    input_shape: Sequence[int],
    num_outputs: int,
    hidden_units: Sequence[int] = (32, 32),
    activation: str = "tanh",
    dtype: str | None = None,
    seed: int | None = None,
) -> keras.Model:
    """Returns the dense network of the regression experiments (2 x 32 tanh in Adjoint MAML).

    Args:
        input_shape: shape of one input, without the batch axis; flattened if it has several axes.
        num_outputs: how many numbers to predict (the last layer has no activation).
        hidden_units: width of each hidden layer.
        activation: name of a Keras activation for the hidden layers.
        dtype: floating-point type or Keras dtype policy; None: Keras's default.
        seed: seed of the initial weights (Glorot uniform); None: different in every call.

    Returns:
        A built Keras model, [batch, *input_shape] -> [batch, num_outputs].
    """
    initializers = glorot_initializers(seed, len(hidden_units) + 1)
    inputs = keras.Input(tuple(input_shape), dtype=dtype)
    x = keras.layers.Flatten(dtype=dtype)(inputs) if len(input_shape) > 1 else inputs
    for units, initializer in zip(hidden_units, initializers, strict=False):
        x = keras.layers.Dense(units, activation, kernel_initializer=initializer, dtype=dtype)(x)
    outputs = keras.layers.Dense(num_outputs, kernel_initializer=initializers[-1], dtype=dtype)(x)
    return keras.Model(inputs, outputs, name="multilayer_perceptron")
