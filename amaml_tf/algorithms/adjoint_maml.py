"""Adjoint MAML, the algorithm of this library."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from amaml_tf.adaptation import Start, read_probe
from amaml_tf.algorithms.base import (
    Algorithm,
    Episodes,
    MetaDiagnostics,
    MetaGradients,
    TaskWeights,
    arrived,
    number_of_tasks,
)
from amaml_tf.functional import FunctionalModel
from amaml_tf.gradient_flow import GradientFlow
from amaml_tf.solvers.one_step import OneStepSolver


class AdjointMAML(Algorithm):
    """Learns the initialization by the exact gradient through the gradient flow of each task.

    The meta-gradient of the mean query loss L_Q(u(T)) is λ(0), from the adjoint that the flow
    names. With `flow.learn_final_time` or `flow.learned_rates` it learns these too.

    With `shortest_time` the initialization is learned for runs of many lengths at once: the i-th
    of the B tasks of a batch is adapted for the time

        t_i = shortest_time (T / shortest_time)^((i + 1/2) / B),    i = 0, ..., B - 1

    which is the mean of L_Q(u(t)) over log t in the long run, if any task may come at any place.
    Short runs have meta-gradients of little noise and keep the initialization near to the tasks,
    long ones say where it leads. Wherever else the learner adapts, it does so for the time T.

    Args:
        flow: the inner training run.
        adapted_layers: names of the layers to adapt (the others are learned, and stay as they are
            during adaptation: ANIL, and COMLN, in continuous time); None adapts all.
        shortest_time: in (0, T), see above; for batches of two tasks or more (on each replica), a
            time that is not learned and a solver of `amaml_tf.solvers`. None: all tasks of a
            meta-update are adapted for the time T.

    Raises:
        ValueError: if `shortest_time` is out of its range or does not go with the flow.

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
    ) -> None:
        super().__init__(flow or GradientFlow())
        self.shortest_time = shortest_time
        if shortest_time is not None:
            _check_shortest_time(shortest_time, self.flow)
        self.adapted_layers = tuple(adapted_layers) if adapted_layers is not None else None
        self._log_final_time: keras.Variable | None = None
        self._log_rates: keras.Variable | None = None
        self._rate_sizes: list[int] | None = None

    def names_of_adapted_layers(self, model: keras.Model) -> Sequence[str] | None:
        """Returns which layers of `model` adaptation changes; None for all."""
        del model
        return self.adapted_layers

    def adapted(self, model: keras.Model) -> list[bool] | None:
        names = self.names_of_adapted_layers(model)
        if names is None:
            return None
        layers = {layer.name: layer for layer in model.layers}
        unknown = [name for name in names if name not in layers]
        if unknown:
            raise ValueError(
                f"Expected adapted_layers to name layers of the model ({', '.join(layers)}), got "
                f"{', '.join(unknown)}."
            )
        chosen = {id(v) for name in names for v in layers[name].trainable_variables}
        return [id(variable) in chosen for variable in model.trainable_variables]

    def build(self, function: FunctionalModel) -> None:
        if self.variables:
            return
        dtype = function.dtype.name
        if self.flow.learn_final_time:
            start = math.log(self.flow.final_time)
            self._log_final_time = keras.Variable(start, dtype=dtype, name="log_final_time")
            if self.flow.max_final_time is not None:
                # The optimizer applies it after every step.
                longest = math.log(self.flow.max_final_time)
                self._log_final_time.constraint = lambda value: keras.ops.minimum(value, longest)
            self.variables.append(self._log_final_time)
        if self.flow.learned_rates != "none":
            sizes = function.layout.sizes
            per_tensor = self.flow.learned_rates == "tensor"
            count = len(sizes) if per_tensor else sum(sizes)
            self._rate_sizes = sizes if per_tensor else None
            self._log_rates = keras.Variable(np.zeros(count), dtype=dtype, name="log_rates")
            self.variables.append(self._log_rates)

    def final_time(self) -> Any:
        if self._log_final_time is None:
            return self.flow.final_time
        return tf.stop_gradient(tf.exp(tf.convert_to_tensor(self._log_final_time)))

    def _rates(self, adapted: tf.Tensor) -> tf.Tensor:
        rates = adapted[:0]
        if self._log_rates is not None:
            rates = tf.exp(tf.convert_to_tensor(self._log_rates))
            if self._rate_sizes is not None:
                rates = tf.repeat(rates, self._rate_sizes)
                rates = tf.ensure_shape(rates, adapted.shape)
        if self._log_final_time is not None:
            # Time stretched by a factor is a gradient multiplied by it. The factor is 1, and its
            # derivative that of the final time.
            log_time = tf.convert_to_tensor(self._log_final_time)
            stretch = tf.exp(log_time - tf.stop_gradient(log_time))
            rates = stretch * rates if rates.shape[0] else stretch[tf.newaxis]
        return rates

    def _times(self, num_tasks: int) -> Any:
        """How long to adapt the tasks of a meta-update: a scalar, or `[B]`."""
        if self.shortest_time is None:
            return self.final_time()
        if num_tasks < 2:
            raise ValueError(
                f"Expected batches of 2 tasks or more with shortest_time={self.shortest_time}, "
                "whose times are spread over a batch, got 1 task; take more, or leave it out."
            )
        places = (np.arange(num_tasks) + 0.5) / num_tasks
        return self.shortest_time * (self.flow.final_time / self.shortest_time) ** places

    def meta_gradients(
        self,
        function: FunctionalModel,
        state: list[tf.Tensor],
        episodes: Episodes,
        task_clip_norm: float | None = None,
    ) -> MetaGradients:
        support, (query_x, query_y) = episodes
        num_tasks = number_of_tasks(episodes)
        parameters = [tf.convert_to_tensor(v) for v in function.model.trainable_variables]
        own = [v.value for v in self.variables]
        probe = tf.zeros([num_tasks, 4], function.dtype)
        # Two tapes, because in between every task still has a gradient of its own.
        with tf.GradientTape(watch_accessed_variables=False) as to_start:
            to_start.watch([*parameters, *own])
            start = self.start(function, parameters, num_tasks)
        with tf.GradientTape(watch_accessed_variables=False) as to_end:
            to_end.watch([*start, probe])
            adaptation = self.adapt(
                function, state, support, start, probe=probe, final_time=self._times(num_tasks)
            )
        losses, into_adapted, into_held, outputs = function.query_gradient(
            adaptation.adapted, start.held, state, query_x, query_y
        )
        share = TaskWeights.of(arrived(adaptation.diagnostics, losses), function.dtype)
        counts = share.weights[:, tf.newaxis] > 0
        *per_task, probed = to_end.gradient(
            adaptation.adapted,
            [*start, probe],
            output_gradients=tf.where(counts, into_adapted, 0),
            unconnected_gradients=tf.UnconnectedGradients.ZERO,
        )
        into_start = Start(*per_task)
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
            diagnostics=MetaDiagnostics(
                adaptation.diagnostics, read_probe(probed), share.num_dropped
            ),
        )


def _check_shortest_time(shortest_time: float, flow: GradientFlow) -> None:
    if not 0 < shortest_time < flow.final_time:
        raise ValueError(
            f"Expected shortest_time to be between 0 and the final time {flow.final_time}, got "
            f"{shortest_time}; pass a shorter one, such as {flow.final_time / 50:g}."
        )
    if flow.learn_final_time:
        raise ValueError(
            "Expected a final time that is not learned with shortest_time, got "
            "learn_final_time=True; leave one of them out."
        )
    if not isinstance(flow.solver, OneStepSolver) or flow.adjoint == "backsolve":
        raise ValueError(
            "Expected a solver of amaml_tf.solvers and the adjoint 'discrete' or 'continuous' "
            f"with shortest_time, got {type(flow.solver).__name__} and {flow.adjoint!r}: only "
            "these adapt every task for a time of its own."
        )
