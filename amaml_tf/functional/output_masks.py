"""The masks that layers give to the outputs of a model: metrics of Keras leave masked steps out."""

from __future__ import annotations

import keras
import tensorflow as tf

# Keras exports neither of these: the mask that losses and metrics find at a tensor.
from keras.src.backend import get_keras_mask, set_keras_mask

from amaml_tf.aliases import Outputs, Tensors
from amaml_tf.functional.model import FunctionalModel


class OutputMasks:
    """The masks of the outputs for one task, of its inputs.

    Outputs lose their masks where tasks are put together, so the model is traced once more. Of
    this trace only what the masks need is executed.

    Args:
        function: model and loss.
    """

    def __init__(self, function: FunctionalModel) -> None:
        self._function = function
        #: Whether an output may have a mask. (To trace a large model only for this takes seconds.)
        self.may_be = any(map(_may_mask, function.model._flatten_layers()))  # noqa: SLF001 - Keras has no public recursive list

    def __call__(self, x: Tensors) -> list[tf.Tensor | None]:
        """Returns a mask for each output (bool, its first axes), or None.

        Args:
            x: inputs, `[n, ...]`.
        """
        function = self._function
        outputs, _ = function.predict(function.parameters(), function.state(), x, adapting=False)
        return [get_keras_mask(each) for each in tf.nest.flatten(outputs)]


def masked(outputs: Outputs, masks: list[tf.Tensor | None]) -> Outputs:
    """Returns the outputs with their masks, where Keras's metrics find them."""
    flat = tf.nest.flatten(outputs)
    for place, mask in enumerate(masks):
        if mask is not None:
            flat[place] = tf.identity(flat[place])
            set_keras_mask(flat[place], mask)
    return tf.nest.pack_sequence_as(outputs, flat)


def _may_mask(layer: keras.layers.Layer) -> bool:
    of_keras = type(layer).__module__.startswith("keras.")
    masks = isinstance(layer, keras.layers.Masking) or getattr(layer, "mask_zero", False)
    return masks or not of_keras
