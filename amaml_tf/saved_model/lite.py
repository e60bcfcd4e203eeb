"""Adaptation on a phone: a LiteRT file that adapts itself, with builtin operations only.

LiteRT has no loops over lists of tensors, no double precision to speak of and no gradients of
convolutions. A file therefore adapts one task with a fixed number of support examples, keeps no
trajectory, and reads the coefficients of its solver from a table.
"""

from __future__ import annotations

import copy
import dataclasses
import re
import tempfile
from pathlib import Path

import keras
import tensorflow as tf

# The converter's error has no public name.
from tensorflow.lite.python.convert_phase import ConverterError

from amaml_tf.algorithms.base import Algorithm
from amaml_tf.algorithms.flow_based import FlowBased
from amaml_tf.errors import UsageError
from amaml_tf.functional.model import FunctionalModel
from amaml_tf.learner.meta_learner import MetaLearner
from amaml_tf.saved_model.adapting import Adapter
from amaml_tf.saved_model.bounds import default_bounds
from amaml_tf.saved_model.interface import interface_of
from amaml_tf.solvers.runge_kutta_chebyshev import RungeKuttaChebyshev
from amaml_tf.solvers.tfp_solver import OneStepSolver
from amaml_tf.units import Units

#: More stages than any step on the networks of the papers takes; their table has 175 kB.
_MAX_NUM_STAGES = 128
SIGNATURE = "adapt_and_predict"
LITE_MODEL = Path("assets.extra", "initialization.tflite")
#: The layers whose gradients LiteRT can compute.
_ADAPTABLE = (keras.layers.Dense, keras.layers.BatchNormalization, keras.layers.LayerNormalization)


def lite_model(
    learner: MetaLearner,
    support_rows: int,
    *,
    units: Units | None = None,
    target_spec: tf.TensorSpec | None = None,
    query_statistics: str = "support",
) -> bytes:
    """Returns a LiteRT file with the signature `adapt_and_predict`.

    Its inputs are `support_x` and `support_y`, with `support_rows` rows, and `query_x` with any
    number of rows. Its outputs are `predictions` after adaptation, `support_loss_before`,
    `support_loss_after` and `gradient_evaluations`. If the adaptation fails, the predictions and
    `support_loss_after` are NaN.

    Args:
        learner: a compiled learner; its model and its way to adapt are converted.
        support_rows: the number of support examples, >= 1. LiteRT refuses other numbers.
        units: as for `save_initialization`.
        target_spec: as for `save_initialization`.
        query_statistics: as for `save_initialization`.

    Raises:
        UsageError: LiteRT cannot compute what the model, the units or the solver need; the message
            names it.
    """
    if support_rows < 1:
        raise UsageError(f"Expected support_rows to be at least 1, got {support_rows}.")
    _check_layers(learner.function)
    algorithm = _without_double_precision(learner.algorithm)
    interface = interface_of(
        learner.function,
        input_spec=None,
        target_spec=target_spec,
        units=units,
        class_names=(),
        query_statistics=query_statistics,
    )
    if len(interface.inputs) != 1 or len(interface.outputs) != 1:
        raise UsageError(
            "Expected a model with one input and one output for LiteRT, got "
            f"{len(interface.inputs)} and {len(interface.outputs)}; export without --lite."
        )
    adapter = Adapter(learner.function, algorithm, interface, default_bounds(algorithm))
    variables = [*learner.model.variables, *learner.algorithm_variables]
    values = [variable.numpy() for variable in variables]
    query_x = interface.inputs[""]
    support = [
        tf.TensorSpec([support_rows, *spec.shape[1:]], spec.dtype)
        for spec in (query_x, interface.targets[""])
    ]

    @tf.function(autograph=False, input_signature=[*support, query_x])
    def adapt_and_predict(
        support_x: tf.Tensor, support_y: tf.Tensor, query_x: tf.Tensor
    ) -> dict[str, tf.Tensor]:
        constants = [(v, tf.constant(value)) for v, value in zip(variables, values, strict=True)]
        # The converter does not know the variables of Keras.
        with keras.StatelessScope(state_mapping=constants):
            return _answer(adapter, algorithm, support_x, support_y, query_x)

    return _converted(adapt_and_predict, learner.model)


def write_lite(content: bytes, version: Path) -> None:
    """Writes a LiteRT file into the folder of a version, completely or not at all."""
    path = version / LITE_MODEL
    unfinished = path.with_name(f".{path.name}.unfinished")
    unfinished.write_bytes(content)
    unfinished.replace(path)


def _answer(
    adapter: Adapter,
    algorithm: Algorithm,
    support_x: tf.Tensor,
    support_y: tf.Tensor,
    query_x: tf.Tensor,
) -> dict[str, tf.Tensor]:
    function, units = adapter.function, adapter.interface.units
    support = tf.nest.map_structure(
        lambda v: v[tf.newaxis], (adapter.inputs({"": support_x}), adapter.targets({"": support_y}))
    )
    state, start = function.state(), function.initialization(1)
    adapted, diagnostics = algorithm.adapt(function, state, support)
    before, _ = function.query(*start, state, *support)
    after, _ = function.query(adapted, start.held, state, *support)
    parameters = function.unravel(adapted[0], start.held[0])
    examples = tf.nest.map_structure(lambda v: v[0], support)
    found = function.statistics_of(parameters, state, examples)
    statistics = [found[place] for place in adapter.places_of_statistics]
    outputs = adapter.predict(parameters, statistics, {"": query_x})
    if units is not None and units.targets is not None:
        outputs = units.targets.raw(outputs)
    return {
        "predictions": outputs,
        "support_loss_before": before[0],
        "support_loss_after": after[0],
        "gradient_evaluations": diagnostics.num_evaluations[0],
    }


def _without_double_precision(algorithm: Algorithm) -> Algorithm:
    """Returns the algorithm with a solver that LiteRT can run."""
    if not isinstance(algorithm, FlowBased):
        return algorithm
    solver = algorithm.flow.solver
    if not isinstance(solver, OneStepSolver):
        raise UsageError(
            f"Expected a solver of amaml_tf.solvers for LiteRT, got {type(solver).__name__}, whose "
            "linear algebra has no equivalent there; export with another --solver."
        )
    if isinstance(solver, RungeKuttaChebyshev):
        algorithm = copy.copy(algorithm)
        solver = solver.tabulated(_MAX_NUM_STAGES)
        algorithm.flow = dataclasses.replace(algorithm.flow, solver=solver)
    return algorithm


def _check_layers(function: FunctionalModel) -> None:
    if function.dtype != tf.float32:
        raise UsageError(
            f"Expected a model in float32 for LiteRT, got {function.dtype.name}; train it with "
            "--dtype=float32."
        )
    adapted, _ = function.split(function.model.trainable_variables)
    wanted = {id(variable) for variable in adapted}
    for layer in function.model._flatten_layers(include_self=False):  # noqa: SLF001 - see execution
        # Its own variables, without those of layers inside it.
        own = {id(variable) for variable in layer._trainable_variables}  # noqa: SLF001
        if own & wanted and not isinstance(layer, _ADAPTABLE):
            raise UsageError(
                f"Expected to adapt only dense and normalization layers in LiteRT, got layer "
                f"{layer.name!r} ({type(layer).__name__}), whose gradient it cannot compute; train "
                "with --adapted_layers=NAME of the dense layers to adapt, or --algorithm=anil."
            )


def _converted(function: tf.types.experimental.PolymorphicFunction, model: keras.Model) -> bytes:
    concrete = function.get_concrete_function()
    options = tf.saved_model.SaveOptions(experimental_custom_gradients=False)
    with tempfile.TemporaryDirectory() as folder:
        tf.saved_model.save(tf.Module(), folder, {SIGNATURE: concrete}, options)
        converter = tf.lite.TFLiteConverter.from_saved_model(folder, [SIGNATURE])
        converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS]
        try:
            return bytes(converter.convert())
        except ConverterError as error:
            raise _refusal(str(error), concrete, model) from error


def _refusal(
    message: str, concrete: tf.types.experimental.ConcreteFunction, model: keras.Model
) -> UsageError:
    """Returns an error that names the operations LiteRT lacks, and the layers they are of."""
    kinds = set(re.findall(r"'tf\.(\w+)' op", message)) or set(
        re.findall(r'fused\["(\w+):', message)
    )
    graph = concrete.graph.as_graph_def()
    nodes = [*graph.node, *(n for f in graph.library.function for n in f.node_def)]
    names = [node.name for node in nodes if node.op in kinds]
    layers = [
        layer.name
        for layer in model._flatten_layers(include_self=False)  # noqa: SLF001 - see execution
        # Within a graph, names of layers are numbered.
        if any(re.search(rf"(^|/){re.escape(layer.name)}(_\d+)?(/|$)", name) for name in names)
    ]
    what = ", ".join(sorted(kinds)) or message.splitlines()[0]
    place = f" of layer {', '.join(map(repr, layers))}" if layers else ""
    return UsageError(
        f"Expected a model of operations that LiteRT has, got {what}{place}; use another layer "
        "there, or export without --lite."
    )
