"""Adaptation to one task of any size, in the graph, which tells what was wrong with a task."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import tensorflow as tf

from amaml_tf.algorithms.base import Algorithm
from amaml_tf.algorithms.flow_based import FlowBased
from amaml_tf.aliases import Tensors
from amaml_tf.functional.model import FunctionalModel
from amaml_tf.saved_model import validation, value_checks
from amaml_tf.saved_model.bounds import Bounds, bounded, fixed_evaluations
from amaml_tf.saved_model.interface import (
    Interface,
    packed_inputs,
    statistics_of,
)
from amaml_tf.saved_model.targets import packed_targets
from amaml_tf.saved_model.validation import Check
from amaml_tf.saved_model.vocabularies import Vocabularies
from amaml_tf.solvers.diagnostics import COMPLETED, STEP_LIMIT, Diagnostics

#: Tensors by the ends of their names: see `Interface`.
Named = Mapping[str, tf.Tensor]


class Adapted(NamedTuple):
    """What adaptation to one task gives.

    Attributes:
        parameters: `[P]`, all trainable parameters in one vector; NaN if there is an error.
        statistics: those of batch normalization on the support set, where predictions use them.
        loss_before: scalar, the support loss of the initialization.
        loss_after: scalar, the support loss after adaptation.
        evaluations: int32 scalar, gradient evaluations.
        error: string scalar, what was wrong with the task; "" if nothing was.
    """

    parameters: tf.Tensor
    statistics: list[tf.Tensor]
    loss_before: tf.Tensor
    loss_after: tf.Tensor
    evaluations: tf.Tensor
    error: tf.Tensor


class Adapter:
    """Adapts to a support set in raw units, of any number of examples.

    Args:
        function: model and loss.
        algorithm: how to adapt.
        interface: what the export takes.
        bounds: of a request.

    Raises:
        UsageError: the solver cannot be bounded.
    """

    def __init__(
        self,
        function: FunctionalModel,
        algorithm: Algorithm,
        interface: Interface,
        bounds: Bounds,
    ) -> None:
        # Vectorisation gains nothing for a single task.
        self.function = function.side_by_side()
        self.interface = interface
        self.bounds = bounds
        used = statistics_of(self.function) if interface.statistics else []
        places = {id(v): n for n, v in enumerate(self.function.model.non_trainable_variables)}
        #: The places of the statistics among the non-trainable variables.
        self.places_of_statistics = [places[id(variable)] for variable in used]
        self._with_stored_statistics = FunctionalModel(
            function.model,
            function.loss.given,
            loss_weights=function.loss.given_weights,
            batch_statistics=False,
            adapted=function.adapted,
            vectorize=False,
        )
        self._algorithm = bounded(algorithm, bounds.max_gradient_evaluations)
        self.layers = []
        if interface.units is not None:
            self.layers = interface.units.inputs.layers(self.function.dtype.name)
        #: The longest time that a request may ask for: ten times that of the export, or that of the
        #: export if steps have a fixed size.
        times = 10.0 if fixed_evaluations(algorithm) is None else 1.0
        self.longest_time = times * float(algorithm.final_time())
        self.vocabularies = Vocabularies(
            function.model, self.predict_unadapted, self.interface.inputs
        )
        # Traced once each, for all signatures to call: without weights, and with them.
        self._run = self._program()
        weight = tf.TensorSpec([None], self.function.dtype)
        self._run_weighted = self._program(weight) if interface.takes_weights else self._run

    @property
    def takes_final_time(self) -> bool:
        """Whether a request can choose how long to adapt."""
        return isinstance(self._algorithm, FlowBased)

    def final_time(self) -> tf.Tensor:
        """Returns the time of adaptation of the export."""
        return tf.cast(self._algorithm.final_time(), self.function.dtype)

    def inputs(self, raw: Named) -> Tensors:
        """Returns the inputs of the model."""
        return packed_inputs(
            self.function.model, {name: self._scaled(x) for name, x in raw.items()}
        )

    def targets(self, raw: Named) -> Tensors:
        """Returns the targets of the loss."""
        units = self.interface.units
        if units is not None and units.targets is not None:
            raw = {name: units.targets.scaled(y) for name, y in raw.items()}
        return packed_targets(self.function.model, raw)

    def unravel(self, parameters: tf.Tensor) -> list[tf.Tensor]:
        """Returns the trainable parameters of one vector."""
        size = self.function.layout.size
        return self.function.unravel(parameters[:size], parameters[size:])

    def predict(
        self, parameters: Sequence[tf.Tensor], statistics: Sequence[tf.Tensor], x: Named
    ) -> Tensors:
        """Returns the outputs of the model for raw inputs.

        Args:
            parameters: values of the trainable variables.
            statistics: of batch normalization; empty: those of `x`, or those stored, as in the
                learner.
            x: raw inputs.
        """
        function, state = self.function, list(self.function.state())
        if statistics:
            function = self._with_stored_statistics
            for place, value in zip(self.places_of_statistics, statistics, strict=True):
                state[place] = value
        return function.predict(parameters, state, self.inputs(x), adapting=False)[0]

    def predict_unadapted(self, x: Named) -> Tensors:
        """Returns the outputs of the initialization for raw inputs, by the stored statistics."""
        function = self._with_stored_statistics
        parameters, state = function.parameters(), function.state()
        return function.predict(parameters, state, self.inputs(x), adapting=False)[0]

    def named_predictions(self, outputs: Tensors) -> dict[str, tf.Tensor]:
        """Returns the outputs of the model in raw units, as `predictions`, one name for each."""
        units = self.interface.units
        targets = None if units is None else units.targets
        return {
            f"predictions{end}": values if targets is None else targets.raw(values)
            for end, values in zip(self.interface.outputs, tf.nest.flatten(outputs), strict=True)
        }

    def adapt(
        self,
        x: Named,
        y: Named,
        weight: tf.Tensor | None,
        time: tf.Tensor,
        further: Sequence[Check] = (),
    ) -> Adapted:
        """Adapts to one task whose shapes have been checked.

        Args:
            x: raw support inputs.
            y: raw support targets.
            weight: float32 `[rows]`, of the examples; None: 1.
            time: scalar, how long to adapt.
            further: what else must hold for the task to be adapted to.
        """
        checks: list[Check] = []
        weights: list[tf.Tensor] = []
        if weight is not None:
            checks = value_checks.of_weights(weight, self.interface.takes_weights)
            counts = weight > 0  # what does not count need not be finite, or a label
            x, y, weight = tf.nest.map_structure(
                lambda values: tf.boolean_mask(values, counts), (dict(x), dict(y), weight)
            )
            if self.interface.takes_weights:
                weights = [tf.cast(weight, self.function.dtype)]
        run = self._run_weighted if weights else self._run
        checks += [
            *value_checks.of_inputs(self.vocabularies, "support_x", x),
            *value_checks.of_targets(self.interface, y),
            *further,
        ]
        error = validation.first_failure(checks)
        return tf.cond(
            tf.equal(error, ""),
            lambda: run(dict(x), dict(y), time, *weights),
            lambda: self._refused(error),
        )

    def _program(self, *weight: tf.TensorSpec) -> Callable[..., Adapted]:
        interface, time = self.interface, tf.TensorSpec([], self.function.dtype)
        program = tf.function(self._adapt, autograph=False)
        return program.get_concrete_function(
            dict(interface.inputs), dict(interface.targets), time, *weight
        )

    def _scaled(self, x: tf.Tensor) -> tf.Tensor:
        for layer in self.layers:
            x = layer(x)
        return x

    def _adapt(
        self,
        x: dict[str, tf.Tensor],
        y: dict[str, tf.Tensor],
        time: tf.Tensor,
        *weight: tf.Tensor,
    ) -> Adapted:
        function = self.function
        support = tf.nest.map_structure(
            lambda values: values[tf.newaxis], (self.inputs(x), self.targets(y), *weight)
        )
        algorithm = self._algorithm
        if isinstance(algorithm, FlowBased):
            algorithm = copy.copy(algorithm)
            # Its own time is that of the export; a request may choose another.
            algorithm.final_time = lambda: time  # type: ignore[method-assign]
        state, start = function.state(), function.initialization(1)
        before, _ = function.query(*start, state, *support)
        adapted, diagnostics = algorithm.adapt(function, state, support)
        after, _ = function.query(adapted, start.held, state, *support)
        error = self._error(diagnostics, time, after[0])
        parameters = tf.concat([adapted[0], start.held[0]], axis=0)
        parameters = tf.where(tf.equal(error, ""), parameters, float("nan"))
        statistics = []
        if self.places_of_statistics:
            examples = tf.nest.map_structure(lambda values: values[0], support)
            found = function.statistics_of(self.unravel(parameters), state, examples)
            statistics = [found[place] for place in self.places_of_statistics]
        return Adapted(
            parameters,
            statistics,
            before[0],
            tf.where(tf.equal(error, ""), after[0], float("nan")),
            diagnostics.num_evaluations[0],
            error,
        )

    def _refused(self, error: tf.Tensor) -> Adapted:
        nan = tf.constant(float("nan"), self.function.dtype)
        size = self.function.layout.size + self.function.held_layout.size
        state = self.function.state()
        statistics = [state[place] for place in self.places_of_statistics]
        return Adapted(tf.fill([size], nan), statistics, nan, nan, tf.constant(0), error)

    def _error(self, diagnostics: Diagnostics, time: tf.Tensor, loss: tf.Tensor) -> tf.Tensor:
        """Returns why the adaptation did not come to its end, "" if it did."""
        status, reached = diagnostics.status[0], diagnostics.time[0]
        most = self.bounds.max_gradient_evaluations
        if isinstance(self._algorithm, FlowBased):  # the last step may have gone beyond the bound
            beyond = tf.equal(status, COMPLETED) & (diagnostics.num_evaluations[0] > most)
            status = tf.where(beyond, STEP_LIMIT, status)

        def told() -> tf.Tensor:
            reason = tf.where(
                tf.equal(status, STEP_LIMIT),
                f"needs more than {most} gradient evaluations, the bound of this export",
                "makes the parameters or the support loss infinite or NaN, or the steps too small,",
            )
            return tf.strings.format(
                "Expected support_x and support_y that the model can adapt to, got a support set "
                "that {} (at time {} of {}); look at its units and for outliers.",
                (reason, reached, time),
            )

        # Quotation marks around strings are those of tf.strings.format.
        return tf.cond(
            tf.equal(status, COMPLETED) & tf.math.is_finite(loss),
            lambda: tf.constant(""),
            lambda: tf.strings.regex_replace(told(), '"', ""),
        )
