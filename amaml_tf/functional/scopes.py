"""The scopes of layers in a graph, for layers whose names TensorFlow does not take for a scope."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable
from typing import Any

import tensorflow as tf


def scope(name: str) -> str:
    """Returns the scope of a layer in a graph: its name, if TensorFlow takes that for a scope.

    Keras takes any name of a layer, but fails to trace a layer whose name has a space, a letter
    beyond ASCII or, where no other layer is around it, an underscore in front.
    """
    if re.fullmatch(r"[A-Za-z0-9.][A-Za-z0-9_.-]*", name):
        return name
    return "layer_" + re.sub(r"[^A-Za-z0-9_.-]", "_", name)


def replaced_scope(original: Callable[..., None]) -> Callable[..., None]:
    """Returns `name_scope.__init__` of Keras, with the scopes that `scope` gives."""

    @functools.wraps(original)
    def initialize(self: Any, name: str, **options: Any) -> None:
        original(self, name, **options)
        self._tf_name_scope = tf.name_scope(scope(name))

    return initialize
