"""How a batch of tasks is executed: vectorised or task by task, with or without XLA.

Dense networks are fastest as one vectorised program compiled by XLA. On a CPU, convolutions with
different filters for each task have no fast vectorised kernel: they are fastest task by task, in
parallel, without XLA. Recurrent layers also run task by task, because TensorFlow cannot vectorise
the second derivative of their loop. Other large models on a CPU would take minutes to compile as
one program; XLA compiles the derivatives of their loss alone. What a user brings may fit neither
vectorisation nor XLA, so the way is chosen by trying.
"""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import keras
import tensorflow as tf

# These have no public name: what XLA makes of a program for sizes that are given, and whether the
# graph that is traced is XLA's.
from tensorflow.python.eager.polymorphic_function import compiler_ir
from tensorflow.python.ops import control_flow_util

from amaml_tf.errors import UsageError

_LOG = logging.getLogger(__name__)

MODES = ("auto", "on", "off")

# What TensorFlow raises if it cannot vectorise or compile a program.
_CANNOT = (
    tf.errors.OpError,
    ValueError,
    TypeError,
    LookupError,
    AttributeError,
    NotImplementedError,
    RuntimeError,
    AssertionError,
)

# Operations that TensorFlow vectorises, although they fail in a run as soon as two tasks have
# different sizes: the sizes of their results depend on values. (`tf.boolean_mask` is a Where.)
_NOT_VECTORISED = {
    "DynamicPartition",
    "ListDiff",
    "NonMaxSuppressionV3",
    "NonMaxSuppressionV4",
    "NonMaxSuppressionV5",
    "Unique",
    "UniqueV2",
    "UniqueWithCounts",
    "UniqueWithCountsV2",
    "Where",
}

# On a CPU, a loss of one task with more operations is not vectorised: that takes long, and so does
# XLA, which compiles a copy of it for each place where it is used. (A network of three dense layers
# has 80, a transformer of three blocks 580.)
_MOST_OPERATIONS = 300

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
    """How a batch of tasks is executed.

    Attributes:
        vectorize: whether tasks are vectorised; otherwise they are mapped.
        jit_compile: whether XLA compiles the meta-step.
        jit_derivatives: whether XLA compiles the derivatives of the support loss of one task, and
            nothing around them.
    """

    vectorize: bool
    jit_compile: bool
    jit_derivatives: bool = False

    @property
    def separate(self) -> bool:
        """Whether every task has its whole inner run to itself.

        Derivatives that XLA compiled are so fast that the operations of the solver count as well:
        those are then done once for all tasks.
        """
        return not (self.vectorize or self.jit_compile or self.jit_derivatives)

    @property
    def name(self) -> str:
        """The way of execution in words."""
        how = "as one vectorised program" if self.vectorize else "task by task"
        if self.jit_derivatives:
            return f"{how}, with derivatives compiled by XLA"
        return f"{how}, {'with' if self.jit_compile else 'without'} XLA"


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


def ways(
    model: keras.Model, vectorize: str = "auto", jit_compile: str | bool = "auto"
) -> list[Execution]:
    """Returns the ways to execute the tasks of `model`, the one that should be fastest first.

    "auto" allows several, of which `choose` takes the first that works.

    Args:
        model: the model, whose layers decide what should be fastest.
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
    candidates = [
        Execution(True, True),
        Execution(True, False),
        Execution(False, False, jit_derivatives=True),
        Execution(False, False),
    ]
    if recurrent or (convolutional and on_cpu):
        candidates = candidates[-1:]
    if vectorize != "auto":
        candidates = [way for way in candidates if way.vectorize == (vectorize == "on")]
        candidates = candidates or [Execution(vectorize == "on", vectorize == "on")]
    if jit_compile != "auto":
        whole = jit_compile == "on"
        wanted = [way._replace(jit_compile=whole, jit_derivatives=False) for way in candidates]
        candidates = list(dict.fromkeys(wanted))
    return candidates


def choose(
    candidates: Sequence[Execution], attempt: Callable[[Execution], None], restricted: bool
) -> Execution:
    """Returns the first way of execution that works, and logs why the ones before it do not.

    Args:
        candidates: ways of execution.
        attempt: traces and compiles in a way of execution, and raises an error if it cannot.
        restricted: whether the user has left ways out.

    Raises:
        UsageError: none works, and others are left out. If there are no others, the error of the
            last one is raised as it is.
    """
    reasons: list[str] = []
    for way in candidates:
        try:
            with _quietly():
                attempt(way)
        except UsageError:
            raise
        except _CANNOT as error:
            reasons.append(f"{way.name} ({_first_line(error)})")
            last = error
            continue
        if reasons:
            _LOG.warning(
                "This model and loss are not executed %s; they are executed %s.",
                ", nor ".join(reasons),
                way.name,
            )
        return way
    if restricted:
        raise UsageError(
            "Expected a model and a loss that can be executed as compile(vectorize=..., "
            f"jit_compile=...) says, but they cannot be executed {', nor '.join(reasons)}; leave "
            "both at 'auto', or set vectorize='off' and jit_compile='off'."
        ) from last
    raise last


@contextlib.contextmanager
def _quietly() -> Iterator[None]:
    """Keeps TensorFlow from logging pages about what it cannot vectorise: one line says that."""

    def is_of_others(record: logging.LogRecord) -> bool:
        return not record.pathname.endswith("parallel_for/pfor.py")

    logger = tf.get_logger()
    logger.addFilter(is_of_others)
    try:
        yield
    finally:
        logger.removeFilter(is_of_others)


def require_compilable(program: tf.types.experimental.ConcreteFunction) -> None:
    """Raises an error if XLA cannot compile a traced program. It compiles no machine code.

    Sizes that are not known yet are taken as 2.
    """
    specs = [
        tf.TensorSpec([2 if size is None else size for size in spec.shape], spec.dtype)
        for spec in tf.nest.flatten(program.structured_input_signature)
        if isinstance(spec, tf.TensorSpec)
    ]
    compiler_ir.from_concrete_function(program, specs)(stage="hlo_serialized")


def require_fixed_sizes(program: tf.types.experimental.ConcreteFunction) -> None:
    """Raises an error if sizes in the traced program of one task depend on values."""
    found = sorted({node.op for node in _nodes(program)} & _NOT_VECTORISED)
    if found:
        raise NotImplementedError(
            f"it has operations whose results have sizes that depend on values: {', '.join(found)}"
        )


def require_quickly_vectorizable(program: tf.types.experimental.ConcreteFunction) -> None:
    """Raises an error if the traced program of one task takes too long to vectorise."""
    count = len(_nodes(program))
    on_cpu = not tf.config.list_physical_devices("GPU")
    if on_cpu and count > _MOST_OPERATIONS:
        raise NotImplementedError(
            f"to vectorise its {count} operations takes long; vectorize='on' does it"
        )


def _nodes(program: tf.types.experimental.ConcreteFunction) -> list[Any]:
    definition = program.graph.as_graph_def()
    nodes = [node for function in definition.library.function for node in function.node_def]
    return [*nodes, *definition.node]


def _first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    name = type(error).__name__
    if not lines:
        return name
    # AutoGraph puts a traceback before the message, which begins with the name once more.
    line = lines[-1] if lines[0] == "in user code:" else lines[0]
    return f"{name}: {line.removeprefix(f'{name}: ')[:200]}"
