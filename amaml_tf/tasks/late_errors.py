"""Errors of a user's function in the middle of a stream, as they were raised.

`tf.data` calls the function, and hands its errors on as errors of TensorFlow.
"""

from __future__ import annotations

import collections
import contextlib
from collections.abc import Iterator

import tensorflow as tf

# Streams are read ahead and by several threads, so it need not be the last one.
_raised: collections.deque[Exception] = collections.deque(maxlen=16)


@contextlib.contextmanager
def kept() -> Iterator[None]:
    """Keeps an error that is raised inside, for `unwrapped`."""
    try:
        yield
    except Exception as error:
        _raised.append(error)
        raise


@contextlib.contextmanager
def unwrapped() -> Iterator[None]:
    """Raises an error of TensorFlow that hands on one of `kept` as that one."""
    try:
        yield
    except tf.errors.OpError as wrapped:
        for error in reversed(_raised):
            if f"{type(error).__name__}: {error}" in wrapped.message:
                raise error from None
        raise
