"""ANIL (almost no inner loop): MAML that adapts only the head of the model."""

from __future__ import annotations

from collections.abc import Sequence

import keras

from amaml_tf.algorithms.adjoint_maml import AdjointMAML
from amaml_tf.algorithms.base import REGISTRY
from amaml_tf.algorithms.maml import gradient_descent_flow


@REGISTRY.register("anil")
class ANIL(AdjointMAML):
    """MAML that adapts only the head; the other layers learn features for all tasks.

    The meta-gradient is exact. For the other layers, it includes how their features change the
    inner steps. (`AdjointMAML` with `adapted_layers` is the same in continuous time.)

    Args:
        step_size: learning rate of the inner steps, > 0.
        num_steps: inner steps, >= 1.
        adapted_layers: names of the layers to adapt. None (default): the last of `model.layers`
            that has trainable weights.

    Reference:
        Raghu, Raghu, Bengio, Vinyals, "Rapid learning or feature reuse? Towards understanding the
        effectiveness of MAML", ICLR 2020.
    """

    def __init__(
        self,
        step_size: float = 0.01,
        num_steps: int = 5,
        adapted_layers: Sequence[str] | None = None,
    ) -> None:
        super().__init__(gradient_descent_flow(step_size, num_steps), adapted_layers)

    def names_of_adapted_layers(self, model: keras.Model) -> Sequence[str]:
        if self.adapted_layers is not None:
            return self.adapted_layers
        return [layer.name for layer in model.layers if layer.trainable_variables][-1:]
