"""Keras metrics, computed for each episode separately."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeAlias

import keras
import tensorflow as tf

from amaml_tf.aliases import Tensors
from amaml_tf.learner.episode_metrics import without_padding

#: Maps targets, outputs and weights (if any) of a batch of episodes, task axis first, to metrics by
#: name, `[B]` each.
Measure: TypeAlias = Callable[..., dict[str, tf.Tensor]]


def per_episode(metrics: Sequence[keras.metrics.Metric]) -> Measure:
    """Returns a function that computes the metrics of each episode of a batch, `[B]` each.

    As in `keras.Model.compile(metrics=...)`, weights have no effect, but for examples of weight 0,
    which do not count.
    """
    for metric in metrics:
        metric.reset_state()
    fresh = [[tf.constant(v.numpy()) for v in metric.variables] for metric in metrics]

    def one(episode: tuple[Tensors, ...]) -> list[tf.Tensor]:
        y, outputs, *_ = without_padding(*episode)
        values = []
        for metric, variables in zip(metrics, fresh, strict=True):
            variables = metric.stateless_update_state(variables, y, outputs)
            values.append(tf.cast(metric.stateless_result(variables), tf.float32))
        return values

    # Traced, because metrics called eagerly take as long as the adaptation itself.
    @tf.function
    def measure(y: Tensors, outputs: Tensors, *weight: Tensors) -> dict[str, tf.Tensor]:
        signature = [tf.TensorSpec([], tf.float32)] * len(metrics)
        values = tf.map_fn(one, (y, outputs, *weight), fn_output_signature=signature)
        return {metric.name: value for metric, value in zip(metrics, values, strict=True)}

    return measure if metrics else lambda *scored: {}
