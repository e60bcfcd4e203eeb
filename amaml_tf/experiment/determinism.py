"""Determinism: the same bits in every run of a process that has asked for it."""

from __future__ import annotations

import keras
import tensorflow as tf

from amaml_tf.errors import UsageError


def compute_deterministically(seed: int) -> None:
    """Makes all that this process computes the same, bit for bit, in every process that asks.

    Operations take their deterministic kernels, and each uses one core, because some add up in
    another order on another number of cores. Call this before TensorFlow has computed anything.

    Args:
        seed: of random operations that have none of their own.

    Raises:
        UsageError: TensorFlow has begun to compute with more cores.
    """
    try:
        tf.config.threading.set_intra_op_parallelism_threads(1)
    except RuntimeError as error:
        raise UsageError(
            "Expected deterministic to be asked for before TensorFlow computes anything in a "
            "process, got it later; ask at its beginning."
        ) from error
    tf.config.experimental.enable_op_determinism()
    keras.utils.set_random_seed(seed)
