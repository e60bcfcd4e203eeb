"""Initial weights that a seed makes the same in every run."""

import keras
import numpy as np


def glorot_initializers(seed: int | None, count: int) -> list[keras.Initializer]:
    """Returns one initializer a layer.

    One seed given to all of them would repeat itself in layers of equal shape.
    """
    if seed is None:
        return [keras.initializers.GlorotUniform() for _ in range(count)]
    seeds = np.random.SeedSequence(seed).generate_state(count)
    # Keras takes signed 32-bit seeds.
    return [keras.initializers.GlorotUniform(int(each) % 2**31) for each in seeds]
