"""Base class of algorithms that adapt by a gradient flow."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import tensorflow as tf

from amaml_tf.algorithms.base import Algorithm
from amaml_tf.aliases import Scalar
from amaml_tf.episodes import Examples, number_of_tasks
from amaml_tf.flow.adaptation import Adaptation, Start, adapt
from amaml_tf.flow.gradient_flow import GradientFlow
from amaml_tf.flow.vector_field import Constants, vector_field
from amaml_tf.functional.model import FunctionalModel, State
from amaml_tf.functional.parameters import for_every_task
from amaml_tf.solvers.diagnostics import Diagnostics


class FlowBased(Algorithm):
    """Adapts by a gradient flow from the initialization.

    Args:
        flow: the inner training run.

    Attributes:
        uses_adjoint: whether the meta-gradient is computed by the adjoint of the flow.
    """

    uses_adjoint = True

    def __init__(self, flow: GradientFlow) -> None:
        super().__init__()
        self.flow = flow

    def final_time(self) -> Scalar:
        return self.flow.final_time

    def rates(self, adapted: tf.Tensor) -> tf.Tensor:
        """Returns learned rates of the parameters `adapted` `[P]`: `[P]`, `[1]`, or `[0]` if none.

        They multiply the gradient.
        """
        return adapted[:0]

    def start(
        self, function: FunctionalModel, parameters: Sequence[tf.Tensor], num_tasks: int
    ) -> Start:
        """Returns one start for all of `num_tasks` tasks, from a list of trainable parameters."""
        adapted, held = function.ravel(parameters)
        vectors = (adapted, held, self.rates(adapted))
        return Start(*(for_every_task(vector, num_tasks) for vector in vectors))

    def adapt(self, function: FunctionalModel, state: State, support: Examples) -> Adaptation:
        parameters = function.parameters()
        start = self.start(function, parameters, number_of_tasks(support))
        return adapt(
            self.flow,
            function,
            state,
            support,
            start,
            final_time=self.final_time(),
            differentiable=False,
        )

    def advance(
        self,
        function: FunctionalModel,
        state: State,
        support: Examples,
        adapted: tf.Tensor,
        stretch: tf.Tensor,
        longest: float,
    ) -> tuple[tf.Tensor, Diagnostics]:
        parameters = function.parameters()
        start = self.start(function, parameters, number_of_tasks(support))
        # A flow computes its caps from its final time. Nothing is differentiated here, so the run
        # may be longer than one that is unrolled.
        adjoint = "discrete" if self.flow.adjoint == "unrolled" else self.flow.adjoint
        flow = dataclasses.replace(self.flow, final_time=longest, adjoint=adjoint)
        # The flow does not depend on time, but its proximal term pulls to the initialization.
        anchor = start.adapted if flow.proximal_weight else start.adapted[:, :0]
        constants = Constants(start.held, start.rates, anchor)
        system = vector_field(function, state, support, constants, flow.proximal_weight)
        solution = flow.solve(system, adapted, stretch, record=False)
        return solution.state, solution.diagnostics
