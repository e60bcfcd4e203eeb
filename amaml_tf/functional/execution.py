"""How a batch of tasks is executed: vectorised or task by task, with or without XLA.

Dense networks are fastest as one vectorised program compiled by XLA. On a CPU, convolutions with
different filters for each task have no fast vectorised kernel: they are fastest task by task, in
parallel, without XLA. Recurrent layers also run task by task, because TensorFlow cannot vectorise
the second derivative of their loop.
"""

from __future__ import annotations

import os
from typing import NamedTuple

import keras
import tensorflow as tf

# TensorFlow asks itself this where it traces; it has no public name.
from tensorflow.python.ops import control_flow_util

from amaml_tf.errors import UsageError

MODES = ("auto", "on", "off")

_CONVOLUTIONS = (
    keras.layers.Conv1D,
    keras.layers.Conv2D,
    keras.layers.Conv3D,
    keras.layers.Conv1DTranspose,
    keras.layers.Conv2DTranspose,
    keras.layers.Conv3DTranspose,
    keras.layers.DepthwiseConv1D,
    keras.layers.DepthwiseConv2D,
    keras.layers.SeparableConv1D,
    keras.layers.SeparableConv2D,
)


class Execution(NamedTuple):
    """Whether tasks are vectorised (otherwise mapped), and whether XLA compiles the meta-step."""

    vectorize: bool
    jit_compile: bool


def compile_quickly() -> None:
    """Makes XLA optimise code for CPUs less, for the rest of this process.

    On two cores, this halves the time to the first step and does not change the time of the other
    steps. It is for programs, not for libraries. Call it before anything is compiled. It does
    nothing if there is a GPU, or if the user has set `XLA_FLAGS`.
    """
    if not tf.config.list_physical_devices("GPU"):
        os.environ.setdefault("XLA_FLAGS", "--xla_backend_optimization_level=1")


def inside_xla() -> bool:
    """Returns whether the graph that is traced now is to be compiled by XLA, by whomever."""
    graph = tf.compat.v1.get_default_graph()
    return bool(control_flow_util.GraphOrParentsInXlaContext(graph))


def choose(
    model: keras.Model, vectorize: str = "auto", jit_compile: str | bool = "auto"
) -> Execution:
    """Returns how to execute the tasks of `model`.

    Args:
        model: the model, whose layers decide what "auto" means.
        vectorize: "auto", "on" or "off".
        jit_compile: "auto", "on" (or True) or "off" (or False).

    Raises:
        UsageError: if an argument is none of these, or does not fit the model.
    """
    if isinstance(jit_compile, bool):
        jit_compile = "on" if jit_compile else "off"
    for name, mode in (("vectorize", vectorize), ("jit_compile", jit_compile)):
        if mode not in MODES:
            raise UsageError(f"Expected {name} to be one of {MODES}, got {mode!r}.")
    layers = model._flatten_layers()  # noqa: SLF001 - Keras has no public recursive list
    kinds = [type(layer) for layer in layers]
    on_cpu = not tf.config.list_physical_devices("GPU")
    convolutional = any(issubclass(kind, _CONVOLUTIONS) for kind in kinds)
    recurrent = any(issubclass(kind, keras.layers.RNN) for kind in kinds)
    if recurrent and vectorize == "on":
        raise UsageError(
            f"Expected vectorize to be 'auto' or 'off' for {model.name!r}, which has recurrent "
            "layers, got 'on'. TensorFlow cannot vectorise the second derivative of their loops."
        )
    side_by_side = recurrent or (convolutional and on_cpu)
    vectorized = {"on": True, "off": False, "auto": not side_by_side}[vectorize]
    compiled = {"on": True, "off": False, "auto": vectorized}[jit_compile]
    return Execution(vectorized, compiled)
