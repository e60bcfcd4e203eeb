"""Keras metrics, computed for each episode separately."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeAlias

import keras
import tensorflow as tf

from amaml_tf.aliases import Tensors

#: Maps targets and outputs of a batch of episodes, task axis first, to metrics by name, `[B]` each.
Measure: TypeAlias = Callable[[Tensors, Tensors], dict[str, tf.Tensor]]


def per_episode(metrics: Sequence[keras.metrics.Metric]) -> Measure:
    """Returns a function that computes the metrics of each episode of a batch, `[B]` each."""
    for metric in metrics:
        metric.reset_state()
    fresh = [[tf.constant(v.numpy()) for v in metric.variables] for metric in metrics]

    def one(episode: tuple[Tensors, Tensors]) -> list[tf.Tensor]:
        values = []
        for metric, variables in zip(metrics, fresh, strict=True):
            variables = metric.stateless_update_state(variables, *episode)
            values.append(tf.cast(metric.stateless_result(variables), tf.float32))
        return values

    # Traced, because metrics called eagerly take as long as the adaptation itself.
    @tf.function
    def measure(targets: Tensors, outputs: Tensors) -> dict[str, tf.Tensor]:
        signature = [tf.TensorSpec([], tf.float32)] * len(metrics)
        values = tf.map_fn(one, (targets, outputs), fn_output_signature=signature)
        return {metric.name: value for metric, value in zip(metrics, values, strict=True)}

    return measure if metrics else lambda targets, outputs: {}
