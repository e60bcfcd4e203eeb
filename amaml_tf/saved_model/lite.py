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
from collections.abc import Callable, Iterable, Mapping
from typing import TypeAlias

import keras
import tensorflow as tf

# The converter's error has no public name.
from tensorflow.lite.python.convert_phase import ConverterError

from amaml_tf.algorithms.base import Algorithm
from amaml_tf.algorithms.flow_based import FlowBased
from amaml_tf.errors import UsageError
from amaml_tf.functional.model import FunctionalModel
from amaml_tf.functional.scopes import scope
from amaml_tf.learner.meta_learner import MetaLearner
from amaml_tf.saved_model.adapting import Adapter
from amaml_tf.saved_model.bounds import default_bounds
from amaml_tf.saved_model.interface import interface_of
from amaml_tf.saved_model.signatures import Arguments, ConcreteFunction, Signature
from amaml_tf.solvers.runge_kutta_chebyshev import RungeKuttaChebyshev
from amaml_tf.solvers.tfp_solver import OneStepSolver
from amaml_tf.units import Units

#: More stages than any step on the networks of the papers takes; their table has 175 kB.
_MAX_NUM_STAGES = 128
SIGNATURE = "adapt_and_predict"

_Function: TypeAlias = Callable[[Arguments], dict[str, tf.Tensor]]

LITE_MODEL = "initialization.tflite"
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
    """Returns a LiteRT file with the signatures `adapt_and_predict`, `adapt` and `predict_with`.

    They take and give what the signatures of an export do, with `support_rows` support examples and
    any number of inputs to predict for. `adapt` gives and `predict_with` takes the parameters that
    adaptation changes, and no others. If the adaptation fails, parameters, predictions and
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

    def with_constants(function: _Function) -> _Function:
        def computed(given: Arguments) -> dict[str, tf.Tensor]:
            constants = [(v, tf.constant(c)) for v, c in zip(variables, values, strict=True)]
            # The converter does not know the variables of Keras.
            with keras.StatelessScope(state_mapping=constants):
                return function(given)

        return computed

    signatures = _Signatures(adapter, algorithm, support_rows).all
    traced = {s.name: Signature(s.name, s.specs, with_constants(s.function)) for s in signatures}
    return _converted({name: each.traced() for name, each in traced.items()}, learner.model)


class _Signatures:
    """The signatures of a LiteRT file, without checks.

    Args:
        adapter: gives inputs, targets and predictions.
        algorithm: adapts.
        support_rows: the number of support examples.
    """

    def __init__(self, adapter: Adapter, algorithm: Algorithm, support_rows: int) -> None:
        self._adapter, self._algorithm = adapter, algorithm
        interface = adapter.interface
        x, y = interface.inputs[""], interface.targets[""]
        support = {
            name: tf.TensorSpec([support_rows, *spec.shape[1:]], spec.dtype)
            for name, spec in {"support_x": x, "support_y": y}.items()
        }
        named = list(interface.parameters)
        #: The names of the parameters that adaptation changes. The others are constants.
        self._adapted_names = adapter.function.split(named)[0]
        adapted = {name: interface.parameters[name] for name in self._adapted_names}
        self.all = [
            Signature(SIGNATURE, {**support, "query_x": x}, self._adapt_and_predict),
            Signature("adapt", support, self._adapt),
            Signature(
                "predict_with", {**adapted, **interface.statistics, "x": x}, self._predict_with
            ),
        ]

    def _adapt_and_predict(self, given: Arguments) -> dict[str, tf.Tensor]:
        parameters, statistics, report = self._adapted(given)
        outputs = self._adapter.predict(parameters, statistics, {"": given["query_x"]})
        return {**self._adapter.named_predictions(outputs), **report}

    def _adapt(self, given: Arguments) -> dict[str, tf.Tensor]:
        parameters, statistics, report = self._adapted(given)
        chosen, _ = self._adapter.function.split(parameters)
        names = [*self._adapted_names, *self._adapter.interface.statistics]
        return {**dict(zip(names, [*chosen, *statistics], strict=True)), **report}

    def _predict_with(self, given: Arguments) -> dict[str, tf.Tensor]:
        function = self._adapter.function
        _, held = function.split(function.parameters())
        parameters = function.merge([given[name] for name in self._adapted_names], held)
        statistics = [given[name] for name in self._adapter.interface.statistics]
        outputs = self._adapter.predict(parameters, statistics, {"": given["x"]})
        return self._adapter.named_predictions(outputs)

    def _adapted(
        self, given: Arguments
    ) -> tuple[list[tf.Tensor], list[tf.Tensor], dict[str, tf.Tensor]]:
        """Returns parameters, statistics, and what the adaptation did."""
        adapter, function = self._adapter, self._adapter.function
        x, y = adapter.inputs({"": given["support_x"]}), adapter.targets({"": given["support_y"]})
        support = tf.nest.map_structure(lambda v: v[tf.newaxis], (x, y))
        state, start = function.state(), function.initialization(1)
        adapted, diagnostics = self._algorithm.adapt(function, state, support)
        before, _ = function.query(*start, state, *support)
        after, _ = function.query(adapted, start.held, state, *support)
        parameters = function.unravel(adapted[0], start.held[0])
        found = function.statistics_of(parameters, state, (x, y))
        statistics = [found[place] for place in adapter.places_of_statistics]
        report = {
            "support_loss_before": before[0],
            "support_loss_after": after[0],
            "gradient_evaluations": diagnostics.num_evaluations[0],
        }
        return parameters, statistics, report


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


def _converted(functions: Mapping[str, ConcreteFunction], model: keras.Model) -> bytes:
    options = tf.saved_model.SaveOptions(experimental_custom_gradients=False)
    with tempfile.TemporaryDirectory() as folder:
        tf.saved_model.save(tf.Module(), folder, functions, options)
        converter = tf.lite.TFLiteConverter.from_saved_model(folder, list(functions))
        converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS]
        try:
            return bytes(converter.convert())
        except ConverterError as error:
            raise _refusal(str(error), functions.values(), model) from error


def _refusal(message: str, functions: Iterable[ConcreteFunction], model: keras.Model) -> UsageError:
    """Returns an error that names the operations LiteRT lacks, and the layers they are of."""
    kinds = set(re.findall(r"'tf\.(\w+)' op", message)) or set(
        re.findall(r'fused\["(\w+):', message)
    )
    graphs = [function.graph.as_graph_def() for function in functions]
    nodes = [node for graph in graphs for node in graph.node]
    nodes += [n for graph in graphs for f in graph.library.function for n in f.node_def]
    names = [node.name for node in nodes if node.op in kinds]
    layers = [
        layer.name
        for layer in model._flatten_layers(include_self=False)  # noqa: SLF001 - see execution
        # Within a graph, names of layers are numbered.
        if any(
            re.search(rf"(^|/){re.escape(scope(layer.name))}(_\d+)?(/|$)", name) for name in names
        )
    ]
    what = ", ".join(sorted(kinds)) or message.splitlines()[0]
    place = f" of layer {', '.join(map(repr, layers))}" if layers else ""
    return UsageError(
        f"Expected a model of operations that LiteRT has, got {what}{place}; use another layer "
        "there, or export without --lite."
    )
