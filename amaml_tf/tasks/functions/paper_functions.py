"""The base class of the two synthetic families of the Adjoint MAML paper.

Each has two variants. "paper" is the definition that the authors present. "program" is what their
published program computes, for comparison with numbers from that program. In both, the scaler of
the targets is fitted on training tasks only (the authors' program fits it on all tasks).

Reference: Li, Wang, Narayan, Kirby, Zhe, "Meta-Learning with Adjoint Methods", AISTATS 2023.
"""

import keras

from amaml_tf.errors import UsageError
from amaml_tf.losses import HalfMeanSquaredError
from amaml_tf.tasks.functions.function_family import FunctionFamily

VARIANTS = ("paper", "program")


class PaperFunctionFamily(FunctionFamily):
    """The common part of the two families: standardised targets, half the mean squared error."""

    def __init__(self, *, variant: str, **arguments: object) -> None:
        if variant not in VARIANTS:
            raise UsageError(
                f"Expected variant to be one of {VARIANTS}, got {variant!r}; use one of them."
            )
        self.variant = variant
        super().__init__(standardize_targets=True, **arguments)  # type: ignore[arg-type]

    @property
    def loss(self) -> keras.losses.Loss:
        return HalfMeanSquaredError()
