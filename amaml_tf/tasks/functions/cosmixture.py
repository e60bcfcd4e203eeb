"""The CosMixture functions, a synthetic task family of the Adjoint MAML paper."""

import numpy as np
import tensorflow as tf

from amaml_tf.tasks.base import REGISTRY
from amaml_tf.tasks.functions.paper_functions import PaperFunctionFamily
from amaml_tf.tasks.sizes import Size


@REGISTRY.register("cosmixture")
class CosMixtureFamily(PaperFunctionFamily):
    """f(x) = -0.1 Σ_i A cos(ω x_i + φ) - Σ_i x_i², for x in [-1, 1]^dimension.

    Variant "paper": A in [0.1, 1], ω in [0.5π, 2π], φ in [3, 6]. Variant "program": no factor 0.1,
    ω in [3π, 6π], φ in [0.5, 2]. Targets are standardised (see `FunctionFamily`), inputs are not.

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
        dimension: int = 1,
        num_tasks: int = 100,
        task_seed: int = 0,
        variant: str = "paper",
        dtype: str = "float32",
    ) -> None:
        frequency = (3 * np.pi, 6 * np.pi) if variant == "program" else (0.5 * np.pi, 2 * np.pi)
        phase = (0.5, 2.0) if variant == "program" else (3.0, 6.0)
        super().__init__(
            variant=variant,
            dimension=dimension,
            domain=(-1.0, 1.0),
            parameter_ranges=[(0.1, 1.0), frequency, phase],
            num_tasks=num_tasks,
            task_seed=task_seed,
            standardize_inputs=False,
            num_support=num_support,
            num_query=num_query,
            num_test_support=num_test_support,
            num_test_query=num_test_query,
            dtype=dtype,
        )

    def function(self, x: tf.Tensor, parameters: tf.Tensor) -> tf.Tensor:
        """Returns -c Σ_i A cos(ω x_i + φ) - Σ_i x_i², where c = 0.1 or 1 and p = (A, ω, φ)."""
        amplitude, frequency, phase = tf.split(parameters[..., tf.newaxis, :], 3, axis=-1)
        factor = 1.0 if self.variant == "program" else 0.1
        terms = -factor * amplitude * tf.cos(frequency * x + phase) - x**2
        return tf.reduce_sum(terms, axis=-1, keepdims=True)
