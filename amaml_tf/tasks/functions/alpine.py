"""The Alpine functions, a synthetic task family of the Adjoint MAML paper."""

import numpy as np
import tensorflow as tf

from amaml_tf.tasks.base import REGISTRY
from amaml_tf.tasks.functions.paper_functions import PaperFunctionFamily
from amaml_tf.tasks.sizes import Size


@REGISTRY.register("alpine")
class AlpineFamily(PaperFunctionFamily):
    """f(x) = Σ_i |x_i sin(x_i + φ_i) + 0.1 x_i|, for x in [-10, 10]^dimension.

    Variant "paper": one φ_i in [-5π/12, 5π/12] for each coordinate. Variant "program": one φ for
    all coordinates, shifted by π. Inputs and targets are standardised (see `FunctionFamily`).

    Args:
        num_support: support points of a training task.
        num_query: query points of a training task.
        num_test_support: support points of a validation or test task; None: as in training.
        num_test_query: query points of a validation or test task; None: as in training.
        dimension: number of coordinates of x.
        num_tasks: tasks in each split.
        task_seed: selects the tasks.
        variant: "paper" or "program".
        dtype: floating-point type of inputs and targets.

    Raises:
        UsageError: unknown variant, or a size that is not positive.
    """

    def __init__(
        self,
        *,
        num_support: Size = 50,
        num_query: Size = 50,
        num_test_support: Size | None = None,
        num_test_query: Size | None = None,
        dimension: int = 2,
        num_tasks: int = 100,
        task_seed: int = 0,
        variant: str = "paper",
        dtype: str = "float32",
    ) -> None:
        phase = (-5 * np.pi / 12, 5 * np.pi / 12)
        super().__init__(
            variant=variant,
            dimension=dimension,
            domain=(-10.0, 10.0),
            parameter_ranges=[phase] * (1 if variant == "program" else dimension),
            num_tasks=num_tasks,
            task_seed=task_seed,
            standardize_inputs=True,
            num_support=num_support,
            num_query=num_query,
            num_test_support=num_test_support,
            num_test_query=num_test_query,
            dtype=dtype,
        )

    def function(self, x: tf.Tensor, parameters: tf.Tensor) -> tf.Tensor:
        """Returns Σ_i |x_i sin(x_i + φ_i) + 0.1 x_i|, where p = φ."""
        phase = parameters[..., tf.newaxis, :]  # one φ for all coordinates, or one for each
        if self.variant == "program":
            phase += np.pi
        terms = tf.abs(x * tf.sin(x + phase) + 0.1 * x)
        return tf.reduce_sum(terms, axis=-1, keepdims=True)
