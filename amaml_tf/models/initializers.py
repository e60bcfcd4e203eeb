"""Weight initializers that give the same weights in every run with the same seed."""

import keras
import numpy as np


def glorot_initializers(seed: int | None, count: int) -> list[keras.Initializer]:
    """Returns one initializer per layer.

    With one seed for all of them, layers of equal shape would get equal weights.
    """
    if seed is None:
        return [keras.initializers.GlorotUniform() for _ in range(count)]
    seeds = np.random.SeedSequence(seed).generate_state(count)
    # Keras takes signed 32-bit seeds.
    return [keras.initializers.GlorotUniform(int(each) % 2**31) for each in seeds]
