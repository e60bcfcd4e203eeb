"""Adjoint MAML: meta-learning by the exact gradient through a gradient flow."""

from __future__ import annotations

from collections.abc import Sequence

import keras
import tensorflow as tf

from amaml_tf.algorithms.base import REGISTRY, MetaDiagnostics, MetaGradients
from amaml_tf.algorithms.flow_based import FlowBased
from amaml_tf.algorithms.learned_flow import LearnedFlow
from amaml_tf.algorithms.task_weights import TaskWeights, arrived
from amaml_tf.aliases import Scalar
from amaml_tf.episodes import Episodes, number_of_tasks
from amaml_tf.errors import UsageError
from amaml_tf.flow.adaptation import Start, adapt, read_probe
from amaml_tf.flow.gradient_flow import GradientFlow
from amaml_tf.functional.model import FunctionalModel, State
from amaml_tf.solvers.diagnostics import AdjointDiagnostics
from amaml_tf.solvers.tfp_solver import OneStepSolver


@REGISTRY.register("adjoint_maml")
class AdjointMAML(FlowBased):
    """Learns the initialization by the exact gradient through the gradient flow of each task.

    The meta-gradient of the mean query loss L_Q(u(T)) is λ(0), computed by the adjoint that `flow`
    names. With `learn_final_time` or `learned_rates`, T or the rates are learned too.

    With `shortest_time`, the initialization is learned for runs of many lengths at once. Task i of
    the B tasks of a batch is adapted for the time

        t_i = shortest_time (T / shortest_time)^((i + 1/2) / B),    i = 0, ..., B - 1

    On average, the loss is then the mean of L_Q(u(t)) over log t, if the order of tasks is random.
    Short runs have meta-gradients with little noise and keep the initialization near the tasks;
    long runs show where it leads. Outside of meta-updates, the learner adapts for the time T.

    Args:
        flow: the inner training run. Default `GradientFlow()`.
        adapted_layers: names of the layers to adapt; the other layers are learned, but do not
            change during adaptation (ANIL, and COMLN, in continuous time). None (default): all.
        learn_final_time: whether to learn T, as log T, from `flow.final_time`. Default False.
        max_final_time: upper bound of a learned T, at least `flow.final_time`. If longer runs are
            always better, T grows without this bound, and every meta-update is slower than the
            one before. None (default): no bound.
        learned_rates: "none" (default), or rates that multiply the gradient, learned as logarithms,
            initially 1: one per "tensor" or one per "entry" (Meta-SGD in continuous time).
        shortest_time: in (0, T), see above. It needs batches of two tasks or more, a time T that is
            not learned, and a solver of `amaml_tf.solvers`. None (default): all tasks of a
            meta-update are adapted for the time T.

    Raises:
        UsageError: if an argument is out of its range, or does not fit the others.

    Reference:
        Li, Wang, Narayan, Kirby, Zhe, "Meta-Learning with Adjoint Methods", AISTATS 2023.
        Partial adaptation: Raghu et al., "Rapid learning or feature reuse?", ICLR 2020; Deleu et
        al., "Continuous-time meta-learning with forward mode differentiation", ICLR 2022.
    """

    def __init__(
        self,
        flow: GradientFlow | None = None,
        adapted_layers: Sequence[str] | None = None,
        shortest_time: float | None = None,
        *,
        learn_final_time: bool = False,
        max_final_time: float | None = None,
        learned_rates: str = "none",
    ) -> None:
        super().__init__(flow or GradientFlow())
        self.learned = LearnedFlow(self.flow, learn_final_time, max_final_time, learned_rates)
        self.variables = self.learned.variables
        self.shortest_time = shortest_time
        if shortest_time is not None:
            _check_shortest_time(shortest_time, self.flow, learn_final_time)
        self.adapted_layers = tuple(adapted_layers) if adapted_layers is not None else None

    def names_of_adapted_layers(self, model: keras.Model) -> Sequence[str] | None:
        """Returns the names of the layers of `model` that adaptation changes; None for all."""
        del model
        return self.adapted_layers

    def adapted(self, model: keras.Model) -> list[bool] | None:
        names = self.names_of_adapted_layers(model)
        if names is None:
            return None
        layers = {layer.name: layer for layer in model.layers}
        unknown = [name for name in names if name not in layers]
        if unknown:
            raise UsageError(
                f"Expected adapted_layers to name layers of the model ({', '.join(layers)}), got "
                f"{', '.join(unknown)}."
            )
        chosen = {id(v) for name in names for v in layers[name].trainable_variables}
        return [id(variable) in chosen for variable in model.trainable_variables]

    def build(self, function: FunctionalModel) -> None:
        self.learned.build(function)

    def final_time(self) -> Scalar:
        return self.learned.final_time()

    def rates(self, adapted: tf.Tensor) -> tf.Tensor:
        return self.learned.rates(adapted)

    @property
    def needs_places(self) -> bool:  # type: ignore[override]
        return self.shortest_time is not None

    def _times(
        self, num_tasks: int | tf.Tensor, places: tf.Tensor | None, dtype: tf.DType
    ) -> Scalar:
        """Returns how long to adapt each task of a meta-update: a scalar, or `[B]`."""
        if self.shortest_time is None:
            return self.final_time()
        if places is None:  # these are all tasks of a batch
            places = self.places(num_tasks, dtype)
        return self.shortest_time * (self.flow.final_time / self.shortest_time) ** places

    def places(self, num_tasks: int | tf.Tensor, dtype: tf.DType) -> tf.Tensor:
        if self.shortest_time is not None and isinstance(num_tasks, int) and num_tasks < 2:
            raise UsageError(
                f"Expected batches of 2 tasks or more with shortest_time={self.shortest_time}, "
                "whose times are spread over a batch, got 1 task; use more tasks, or leave it out."
            )
        return super().places(num_tasks, dtype)

    def meta_gradients(
        self,
        function: FunctionalModel,
        state: State,
        episodes: Episodes,
        task_clip_norm: float | None = None,
        places: tf.Tensor | None = None,
    ) -> MetaGradients:
        support, query = episodes
        num_tasks = number_of_tasks(episodes)
        parameters = function.parameters()
        own = [v.value for v in self.variables]
        times = self._times(num_tasks, places, function.dtype)
        probe = tf.zeros([num_tasks, 4], function.dtype)
        # Two tapes, because between them every task still has its own gradient.
        with tf.GradientTape(watch_accessed_variables=False) as to_start:
            to_start.watch([*parameters, *own])
            start = self.start(function, parameters, num_tasks)
        with tf.GradientTape(watch_accessed_variables=False) as to_end:
            to_end.watch([*start, probe])
            given = (self.flow, function, state, support, start)
            adaptation = adapt(*given, final_time=times, probe=probe)
        losses, into_adapted, into_held, outputs = function.query_gradient(
            adaptation.adapted, start.held, state, *query
        )
        share = TaskWeights.of(arrived(adaptation.diagnostics, losses), function.dtype)
        counts = share.weights[:, tf.newaxis] > 0
        into_adapted = tf.where(counts, into_adapted, 0)
        into_start, backward = _pulled_back(to_end, adaptation.adapted, into_adapted, start, probe)
        into_start = into_start._replace(held=into_start.held + into_held)
        weights = share.clipped([into_start.adapted, into_start.held], task_clip_norm)
        gradients = to_start.gradient(
            list(start),
            [*parameters, *own],
            output_gradients=[weights.shares(part) for part in into_start],
            unconnected_gradients=tf.UnconnectedGradients.ZERO,
        )
        return MetaGradients(
            loss=share.mean(losses),
            gradients=gradients[: len(parameters)],
            algorithm_gradients=gradients[len(parameters) :],
            losses=losses,
            outputs=outputs,
            diagnostics=MetaDiagnostics(adaptation.diagnostics, backward, share.num_dropped),
        )


def _pulled_back(
    tape: tf.GradientTape,
    adapted: tf.Tensor,
    into_adapted: tf.Tensor,
    start: Start,
    probe: tf.Tensor,
) -> tuple[Start, AdjointDiagnostics]:
    """Returns the cotangents of `start`, and the diagnostics of the backward pass."""
    *into_start, probed = tape.gradient(
        adapted,
        [*start, probe],
        output_gradients=into_adapted,
        unconnected_gradients=tf.UnconnectedGradients.ZERO,
    )
    return Start(*into_start), read_probe(probed)


def _check_shortest_time(shortest_time: float, flow: GradientFlow, learn_final_time: bool) -> None:
    if not 0 < shortest_time < flow.final_time:
        raise UsageError(
            f"Expected shortest_time to be between 0 and the final time {flow.final_time}, got "
            f"{shortest_time}; pass a shorter one, such as {flow.final_time / 50:g}."
        )
    if learn_final_time:
        raise UsageError(
            "Expected a final time that is not learned if shortest_time is given, got "
            "learn_final_time=True; leave one of them out."
        )
    if not isinstance(flow.solver, OneStepSolver) or flow.adjoint == "backsolve":
        raise UsageError(
            "Expected a solver of amaml_tf.solvers and the adjoint 'discrete' or 'continuous' "
            f"with shortest_time, got {type(flow.solver).__name__} and {flow.adjoint!r}: only "
            "these adapt every task for its own time."
        )
