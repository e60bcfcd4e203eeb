"""A family of tasks: lines through 0."""

import tensorflow as tf

from amaml_tf import tasks
from amaml_tf.tasks.functions.function_family import FunctionFamily


@tasks.REGISTRY.register("toy_family")
class Lines(FunctionFamily):
    """f(x) = slope x, with a slope of at most `max_slope`."""

    def __init__(
        self,
        *,
        max_slope: float = 1.0,
        num_support: int = 4,
        num_query: int = 4,
        dtype: str = "float32",
    ) -> None:
        super().__init__(
            dimension=1,
            domain=(-1.0, 1.0),
            parameter_ranges=[(0.0, max_slope)],
            num_tasks=50,
            task_seed=0,
            standardize_inputs=False,
            standardize_targets=False,
            num_support=num_support,
            num_query=num_query,
            dtype=dtype,
        )

    def function(self, x: tf.Tensor, parameters: tf.Tensor) -> tf.Tensor:
        return parameters[..., tf.newaxis, :] * x
