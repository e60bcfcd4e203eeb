"""Frees the custom gradients of programs, which TensorFlow would keep for ever."""

from __future__ import annotations

import weakref

import tensorflow as tf

# TensorFlow's registry of gradients has no public way to remove an entry.
from tensorflow.python.framework import ops


class RegisteredGradients:
    """The custom gradients in the graphs of an owner, which are freed when the owner is.

    For each call of a `tf.custom_gradient` in a graph, TensorFlow registers a function under a new
    name. The function holds the graph, and with it the model. (The flow has custom gradients, and
    so has the sum over replicas in Keras's optimizers.)

    Args:
        owner: what makes the graphs; no graph may hold it.
    """

    def __init__(self, owner: object) -> None:
        self._names: set[str] = set()
        weakref.finalize(owner, _forget, self._names)

    def note(self) -> None:
        """Notes the custom gradients of the graph that is being made; without one, nothing."""
        if tf.executing_eagerly():
            return
        for operation in tf.compat.v1.get_default_graph().get_operations():
            if operation.type == "IdentityN":
                name = operation.node_def.attr["_gradient_op_type"].s.decode()
                if name.startswith("CustomGradient-"):
                    self._names.add(name)


def _forget(names: set[str]) -> None:
    for name in names:
        ops.gradient_registry._registry.pop(name, None)  # noqa: SLF001 - see above
