"""The tokens that the embeddings and encodings of a model know, wherever in the model they are.

XLA and some kernels of TensorFlow take a token out of range for another one, in silence, and others
answer with the name of an operation. Therefore requests are asked what such layers would read.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple, TypeAlias

import keras
import tensorflow as tf

from amaml_tf.aliases import Tensors
from amaml_tf.functional import keras_patches
from amaml_tf.saved_model.validation import Check

#: Tensors by the ends of their names: see `Interface`.
Named = Mapping[str, tf.Tensor]
#: A layer that reads tokens.
Reader: TypeAlias = "keras.layers.Embedding | keras.layers.CategoryEncoding"
#: Outputs of a model, of inputs by the ends of their names.
Predict = Callable[[Named], Tensors]


class Vocabulary(NamedTuple):
    """What one layer knows.

    Attributes:
        layer: its name.
        size: it knows the tokens from 0 to `size - 1`.
        inputs: the ends of the names of the inputs that its tokens are computed from.
    """

    layer: str
    size: int
    inputs: tuple[str, ...]


class Vocabularies:
    """What the embeddings and encodings of a model know, and what they read of inputs.

    Args:
        model: the model.
        predict: computes its outputs.
        specs: of the inputs, by the ends of their names.

    Attributes:
        all: those of the layers that read something of the inputs.
        hidden: the names of layers that read it inside a loop, where it cannot be seen.
    """

    def __init__(
        self, model: keras.Model, predict: Predict, specs: Mapping[str, tf.TensorSpec]
    ) -> None:
        self.all: list[Vocabulary] = []
        self.hidden: list[str] = []
        layers = model._flatten_layers()  # noqa: SLF001 - Keras has no public recursive list
        kinds = (keras.layers.Embedding, keras.layers.CategoryEncoding)
        self._of_model = {id(layer) for layer in layers if isinstance(layer, kinds)}
        self._read: Callable[[Named], list[tf.Tensor]] = lambda _: []
        if self._of_model:
            program = tf.function(lambda x: self._traced(predict, x), autograph=False)
            self._read = program.get_concrete_function(dict(specs))

    def checks(self, name: str, x: Named) -> list[Check]:
        """Returns checks that the tokens of `x`, the inputs called `name`, are known."""
        return [
            _is_known(" and ".join(name + end for end in each.inputs), each, tokens)
            for each, tokens in zip(self.all, self._read(dict(x)), strict=True)
        ]

    def known_if_checked(self, layer: Reader, tokens: tf.Tensor) -> tf.Tensor:
        """Returns tokens that the layer knows, whatever they were, unless no check looks at them.

        Then they stay: others would be answered in silence.
        """
        return tokens if layer.name in self.hidden else known(layer, tokens)

    def _traced(self, predict: Predict, x: Named) -> list[tf.Tensor]:
        read: list[tuple[Reader, tf.Tensor]] = []

        def reading(layer: Reader, tokens: tf.Tensor) -> tf.Tensor:
            if id(layer) in self._of_model:  # and no table of raw units
                read.append((layer, tokens))
            return known(layer, tokens)  # else what follows would fail before anything is said

        with keras_patches.tokens_read(reading):
            predict(x)
        found = []
        for layer, tokens in read:
            if tokens.graph is not tf.compat.v1.get_default_graph():
                self.hidden.append(layer.name)
            elif inputs := _origins(tokens, x):  # else they are constants of the model
                self.all.append(Vocabulary(layer.name, _size(layer), inputs))
                found.append(tokens)
        return found


def known(layer: Reader, tokens: tf.Tensor) -> tf.Tensor:
    """Returns tokens that the layer knows, whatever they were."""
    if tokens.dtype == tf.bool:
        return tokens
    return tf.clip_by_value(tokens, 0, _size(layer) - 1)


def _size(layer: Reader) -> int:
    is_embedding = isinstance(layer, keras.layers.Embedding)
    return int(layer.input_dim if is_embedding else layer.num_tokens)


def _origins(tensor: tf.Tensor, x: Named) -> tuple[str, ...]:
    """Returns the ends of the names of the inputs that a tensor is computed from."""
    ends, found = {id(value.op): end for end, value in x.items()}, set()
    seen, waiting = set(), [tensor.op]
    while waiting:
        operation = waiting.pop()
        if id(operation) in seen:
            continue
        seen.add(id(operation))
        if id(operation) in ends:
            found.add(ends[id(operation)])
        waiting += [each.op for each in operation.inputs]
    return tuple(end for end in x if end in found)


def _is_known(name: str, vocabulary: Vocabulary, tokens: tf.Tensor) -> Check:
    last, layer = vocabulary.size - 1, vocabulary.layer.replace("{}", "_")
    # Compared as they are: as int32, numbers that are too large would be others.
    wide = tokens if tokens.dtype.is_floating else tf.cast(tokens, tf.int64)
    holds = tf.reduce_all((wide >= 0) & (wide <= last))
    if wide.dtype.is_floating:
        holds &= tf.reduce_all(tf.equal(wide, tf.floor(wide)))

    def message() -> tf.Tensor:
        return tf.strings.format(
            f"Expected {name} with whole tokens from 0 to {last} for layer {layer}, "
            "got {} to {}; send tokens in that range.",
            (tf.reduce_min(wide), tf.reduce_max(wide)),
        )

    return Check(holds, message)
