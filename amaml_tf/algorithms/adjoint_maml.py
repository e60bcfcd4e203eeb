"""Adjoint MAML, the algorithm of this library."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from amaml_tf.adaptation import read_probe
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


class AdjointMAML(Algorithm):
    """Learns the initialization by the exact gradient through the gradient flow of each task.

    The meta-gradient of the mean query loss L_Q(u(T)) is λ(0), from the adjoint that the flow
    names. With `flow.learn_final_time` or `flow.learned_rates` it learns these too.

    Args:
        flow: the inner training run.
        adapted_layers: names of the layers to adapt (the others are learned, and stay as they are
            during adaptation: ANIL, and COMLN, in continuous time); None adapts all.

    Reference:
        Li, Wang, Narayan, Kirby, Zhe, "Meta-Learning with Adjoint Methods", AISTATS 2023.
        Partial adaptation: Raghu et al., "Rapid learning or feature reuse?", ICLR 2020; Deleu et
        al., "Continuous-time meta-learning with forward mode differentiation", ICLR 2022.
    """

    def __init__(
        self, flow: GradientFlow | None = None, adapted_layers: Sequence[str] | None = None
    ) -> None:
        super().__init__(flow or GradientFlow())
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

    def meta_gradients(
        self, function: FunctionalModel, state: list[tf.Tensor], episodes: Episodes
    ) -> MetaGradients:
        support, (query_x, query_y) = episodes
        variables = function.model.trainable_variables
        parameters = [tf.convert_to_tensor(variable) for variable in variables]
        probe = tf.zeros([number_of_tasks(episodes), 4], function.dtype)
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch([*parameters, probe])
            own = [v.value for v in self.variables]
            tape.watch(own)
            start = self.start(function, parameters, number_of_tasks(episodes))
            adaptation = self.adapt(function, state, support, start, probe=probe)
        losses, into_adapted, into_held, outputs = function.query_gradient(
            adaptation.adapted, start.held, state, query_x, query_y
        )
        share = TaskWeights.of(arrived(adaptation.diagnostics, losses), function.dtype)
        column = share.weights[:, tf.newaxis]
        cotangents = [tf.where(column > 0, column * g, 0) for g in (into_adapted, into_held)]
        gradients = tape.gradient(
            [adaptation.adapted, start.held],
            [*parameters, *own, probe],
            output_gradients=cotangents,
            unconnected_gradients=tf.UnconnectedGradients.ZERO,
        )
        *gradients, probed = gradients
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
