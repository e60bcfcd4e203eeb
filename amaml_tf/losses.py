"""Losses that Keras does not have."""

import keras
import tensorflow as tf


@keras.saving.register_keras_serializable(package="amaml_tf")
class HalfMeanSquaredError(keras.losses.Loss):
    """Half the mean squared error: L = 1/2 mean((y_true - y_pred)^2).

    It is the loss of the Adjoint MAML experiments. Its gradient is half of that of
    `keras.losses.MeanSquaredError`, so steps of the same step size are half as long.

    It is called with `y_true` and `y_pred` of shape [batch, outputs] (any float dtype). The mean is
    taken over the outputs, then over the batch.

    Reference: Li, Wang, Narayan, Kirby, Zhe, "Meta-Learning with Adjoint Methods", AISTATS 2023.
    """

    def __init__(
        self,
        reduction: str = "sum_over_batch_size",
        name: str = "half_mean_squared_error",
        dtype: str | None = None,
    ) -> None:
        super().__init__(reduction=reduction, name=name, dtype=dtype)

    def call(self, y_true: tf.Tensor, y_pred: tf.Tensor) -> tf.Tensor:
        """Returns half the squared error per example, averaged over the outputs: shape [batch]."""
        return 0.5 * keras.losses.mean_squared_error(y_true, y_pred)
