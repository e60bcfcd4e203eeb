"""Sine waves, the task family of MAML's first experiment."""

import numpy as np
import tensorflow as tf

from amaml_tf.tasks.base import REGISTRY
from amaml_tf.tasks.enumerated import UNLIMITED
from amaml_tf.tasks.functions.function_family import FunctionFamily
from amaml_tf.tasks.sizes import Size


@REGISTRY.register("sinusoid")
class SinusoidFamily(FunctionFamily):
    """f(x) = A sin(x - φ) with A in [0.1, 5] and φ in [0, π], for x in [-5, 5].

    The number of tasks is unlimited. Inputs and targets are not standardised, and the loss is
    Keras's mean squared error, as in MAML.

    Args:
        num_support: support points of a training task.
        num_query: query points of a training task.
        num_test_support: support points of a validation or test task; None: as in training.
        num_test_query: query points of a validation or test task; None: as in training.
        task_seed: selects the tasks.
        dtype: floating-point type of inputs and targets.

    Reference: Finn, Abbeel, Levine, "Model-Agnostic Meta-Learning for Fast Adaptation of Deep
    Networks", ICML 2017, section 5.1.
    """

    def __init__(
        self,
        *,
        num_support: Size = 10,
        num_query: Size = 10,
        num_test_support: Size | None = None,
        num_test_query: Size | None = None,
        task_seed: int = 0,
        dtype: str = "float32",
    ) -> None:
        super().__init__(
            dimension=1,
            domain=(-5.0, 5.0),
            parameter_ranges=[(0.1, 5.0), (0.0, np.pi)],
            num_tasks=UNLIMITED,
            task_seed=task_seed,
            standardize_inputs=False,
            standardize_targets=False,
            num_support=num_support,
            num_query=num_query,
            num_test_support=num_test_support,
            num_test_query=num_test_query,
            dtype=dtype,
        )

    def function(self, x: tf.Tensor, parameters: tf.Tensor) -> tf.Tensor:
        """Returns A sin(x - φ), where p = (A, φ)."""
        amplitude, phase = tf.split(parameters[..., tf.newaxis, :], 2, axis=-1)
        return amplitude * tf.sin(x - phase)
