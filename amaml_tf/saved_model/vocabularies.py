"""How many tokens the embeddings of a model know, for inputs that are read by embeddings."""

from __future__ import annotations

import keras


def vocabulary_sizes(model: keras.Model) -> list[int | None]:
    """Returns for each input of `model` how many tokens it may have, from 0; None: any number.

    XLA and some kernels of TensorFlow take a token out of range for another one, in silence. What
    is looked at are `Embedding` layers that read an input, as it is or flattened.
    """
    sizes: dict[int, int] = {}
    for layer in model._flatten_layers():  # noqa: SLF001 - Keras has no public recursive list
        if isinstance(layer, keras.layers.Embedding):
            for node in layer._inbound_nodes:  # noqa: SLF001 - nor a public way to what it reads
                read = id(_source(node.input_tensors[0]))
                sizes[read] = min(layer.input_dim, sizes.get(read, layer.input_dim))
    return [sizes.get(id(each)) for each in getattr(model, "inputs", None) or []]


def _source(tensor: keras.KerasTensor) -> keras.KerasTensor:
    """Returns what a symbolic tensor is, before it was flattened."""
    layer, node, _ = tensor._keras_history  # noqa: SLF001 - as above
    while isinstance(layer, keras.layers.Flatten | keras.layers.Reshape):
        tensor = layer._inbound_nodes[node].input_tensors[0]  # noqa: SLF001
        layer, node, _ = tensor._keras_history  # noqa: SLF001
    return tensor
