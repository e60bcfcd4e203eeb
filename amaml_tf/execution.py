"""How a batch of tasks is executed: vectorised or side by side, with XLA or without.

Measured on two CPU cores (see `benchmarks`): dense networks want one vectorised program compiled
by XLA; convolutions with a filter bank per task have no fast vectorised kernel on a CPU, and run
best task by task, side by side, without XLA. Recurrent layers run side by side as well: the second
derivative of their loop cannot be vectorised by TensorFlow.
"""

from __future__ import annotations

import os
from typing import NamedTuple

import keras
import tensorflow as tf

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
    """Whether tasks are vectorised (else mapped), and whether XLA compiles the meta-step."""

    vectorize: bool
    jit_compile: bool


def compile_quickly() -> None:
    """Asks XLA, for the rest of this process, for less optimisation of the code it makes for CPUs.

    Measured on two cores, this halves the time to the first step and leaves that of the others.
    For programs, not for libraries, to call, before anything is compiled; `XLA_FLAGS`, where the
    user has set it, and GPUs are left alone.
    """
    if not tf.config.list_physical_devices("GPU"):
        os.environ.setdefault("XLA_FLAGS", "--xla_backend_optimization_level=1")


def choose(model: keras.Model, vectorize: str = "auto", jit_compile: str = "auto") -> Execution:
    """Returns how to execute tasks of `model`.

    Args:
        model: whose layers decide where "auto" is asked for.
        vectorize: "auto", "on" or "off".
        jit_compile: "auto", "on" or "off".

    Raises:
        ValueError: if an argument is none of these.
    """
    for name, mode in (("vectorize", vectorize), ("jit_compile", jit_compile)):
        if mode not in MODES:
            raise ValueError(f"Expected {name} to be one of {MODES}, got {mode!r}.")
    layers = model._flatten_layers()  # noqa: SLF001 - Keras has no public recursive list
    kinds = [type(layer) for layer in layers]
    on_cpu = not tf.config.list_physical_devices("GPU")
    convolutional = any(issubclass(kind, _CONVOLUTIONS) for kind in kinds)
    recurrent = any(issubclass(kind, keras.layers.RNN) for kind in kinds)
    if recurrent and vectorize == "on":
        raise ValueError(
            f"Expected vectorize to be 'auto' or 'off' for {model.name!r}, which has recurrent "
            "layers, got 'on'. TensorFlow cannot vectorise the second derivative of their loops."
        )
    side_by_side = recurrent or (convolutional and on_cpu)
    vectorized = {"on": True, "off": False, "auto": not side_by_side}[vectorize]
    compiled = {"on": True, "off": False, "auto": vectorized}[jit_compile]
    return Execution(vectorized, compiled)
