"""The networks that several benchmarks measure, with their episodes."""

from __future__ import annotations

from typing import Any

import numpy as np


def problem(network: str) -> tuple[Any, Any, Any]:
    """Returns a model, its loss and a batch of episodes.

    "dense" is the network of the paper on five Alpine tasks of 100 examples; "convolutional" is a
    4x64 CNN on five tasks of 25 images of 28x28.
    """
    import keras

    import amaml_tf as amaml

    keras.utils.set_random_seed(0)
    if network == "dense":
        family = amaml.tasks.REGISTRY["alpine"](num_support=100, num_query=100)
        model = amaml.models.multilayer_perceptron(family.input_shape, family.num_outputs)
        episodes = next(iter(family.episodes("test", batch_size=5, num_batches=1)))
        return model, family.loss, episodes
    rng = np.random.default_rng(0)
    x = rng.normal(size=(5, 25, 28, 28, 1)).astype("float32")
    y = np.tile(np.arange(5), (5, 5))
    model = amaml.models.convolutional_network((28, 28, 1), 5, filters=64)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    return model, loss, ((x, y), (x, y))
