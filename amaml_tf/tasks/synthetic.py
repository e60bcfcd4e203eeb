"""The two synthetic families of the Adjoint MAML paper.

Each has two variants. "paper" is the definition that the authors present; "program" is what their
published program computes, to compare with numbers that came out of it. The scaler of the targets
is fitted on training tasks alone in both (the authors' program fits it on all tasks).

Reference: Li, Wang, Narayan, Kirby, Zhe, "Meta-Learning with Adjoint Methods", AISTATS 2023.
"""

import keras
import numpy as np
import tensorflow as tf

from amaml_tf.losses import HalfMeanSquaredError
from amaml_tf.tasks.functions import FunctionFamily

VARIANTS = ("paper", "program")


class _PaperFunctionFamily(FunctionFamily):
    """What the two families have in common: standardised targets, half the mean squared error."""

    def __init__(self, *, variant: str, **arguments: object) -> None:
        if variant not in VARIANTS:
            raise ValueError(
                f"Expected variant to be one of {VARIANTS}, got {variant!r}; use one of them."
            )
        self.variant = variant
        super().__init__(standardize_targets=True, **arguments)  # type: ignore[arg-type]

    @property
    def loss(self) -> keras.losses.Loss:
        return HalfMeanSquaredError()


class CosMixtureFamily(_PaperFunctionFamily):
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
        task_seed: which tasks.
        variant: "paper" or "program".
        dtype: floating-point type of inputs and targets.

    Raises:
        ValueError: unknown variant, or a size that is not positive.
    """

    def __init__(
        self,
        *,
        num_support: int = 50,
        num_query: int = 50,
        num_test_support: int | None = None,
        num_test_query: int | None = None,
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
        """-c Σ_i A cos(ω x_i + φ) - Σ_i x_i² with c = 0.1 or 1; p = (A, ω, φ)."""
        amplitude, frequency, phase = tf.split(parameters[..., tf.newaxis, :], 3, axis=-1)
        factor = 1.0 if self.variant == "program" else 0.1
        terms = -factor * amplitude * tf.cos(frequency * x + phase) - x**2
        return tf.reduce_sum(terms, axis=-1, keepdims=True)


class AlpineFamily(_PaperFunctionFamily):
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
        task_seed: which tasks.
        variant: "paper" or "program".
        dtype: floating-point type of inputs and targets.

    Raises:
        ValueError: unknown variant, or a size that is not positive.
    """

    def __init__(
        self,
        *,
        num_support: int = 50,
        num_query: int = 50,
        num_test_support: int | None = None,
        num_test_query: int | None = None,
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
        """Σ_i |x_i sin(x_i + φ_i) + 0.1 x_i|; p = φ."""
        phase = parameters[..., tf.newaxis, :]  # one for all coordinates, or one for each
        if self.variant == "program":
            phase += np.pi
        terms = tf.abs(x * tf.sin(x + phase) + 0.1 * x)
        return tf.reduce_sum(terms, axis=-1, keepdims=True)
