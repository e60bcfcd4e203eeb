"""The first weights of a model: the same in every run with the same seed, or from a file."""

import keras
import numpy as np

from amaml_tf.errors import UsageError


def glorot_initializers(seed: int | None, count: int) -> list[keras.Initializer]:
    """Returns one initializer per layer.

    With one seed for all of them, layers of equal shape would get equal weights.
    """
    if seed is None:
        return [keras.initializers.GlorotUniform() for _ in range(count)]
    seeds = np.random.SeedSequence(seed).generate_state(count)
    # Keras takes signed 32-bit seeds.
    return [keras.initializers.GlorotUniform(int(each) % 2**31) for each in seeds]


def initialize_kernels(model: keras.Model, seed: int | None) -> None:
    """Assigns new Glorot-uniform values to the variables of a model that are no vectors.

    It is for layers that give one initializer to several kernels, and for models that take none.
    """
    kernels = [each for each in model.trainable_variables if len(each.shape) > 1]
    for kernel, initializer in zip(kernels, glorot_initializers(seed, len(kernels)), strict=True):
        kernel.assign(initializer(kernel.shape, kernel.dtype))


def load_weights(model: keras.Model, path: str) -> None:
    """Loads the weights that `save_weights` wrote.

    Raises:
        UsageError: the file is missing, or its weights are those of another model.
    """
    try:
        model.load_weights(path)
    except (OSError, ValueError, KeyError) as error:
        reason = str(error).strip().splitlines()[0]
        raise UsageError(
            f"Expected the weights of {model.name!r}, written by its save_weights as "
            f"NAME.weights.h5, got {path} ({reason}); pass another file, or none."
        ) from error
