"""Keras metrics of each task of a batch by itself, as `Model.evaluate` reports them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TypeAlias

import tensorflow as tf

# `Model.compile(metrics=...)` makes this from names, objects, lists and dicts. Keras has no public
# name for it.
from keras.src.trainers.compile_utils import CompileMetrics

from amaml_tf.aliases import Outputs, Tensors
from amaml_tf.functional import example_weights

#: What `compile(metrics=...)` takes.
Metrics: TypeAlias = Sequence[object] | Mapping[str, object]


class TaskMetrics:
    """Metrics of each task: what `Model.evaluate` of a model that is adapted to it reports.

    The metrics that are given keep their own state. An example of weight 0 counts nowhere. The
    other weights are those of the weighted metrics.

    Args:
        metrics: as `keras.Model.compile` takes them; None: none.
        weighted_metrics: the same.
        output_names: names of the model's outputs, if they have names.
    """

    def __init__(
        self,
        metrics: Metrics | None,
        weighted_metrics: Metrics | None = None,
        output_names: Sequence[str] | None = None,
    ) -> None:
        self._has_any = bool(metrics) or bool(weighted_metrics)
        self._metrics = CompileMetrics(metrics, weighted_metrics, output_names=output_names)

    def __call__(self, y: Tensors, outputs: Outputs, *weight: Tensors) -> dict[str, tf.Tensor]:
        """Returns the metrics by name, `[B]` each, or `[B, ...]` if they have several values.

        Args:
            y: targets, task axis first.
            outputs: outputs of the model, task axis first.
            *weight: weights of the examples, if they have any.
        """
        if not self._has_any:
            return {}
        tasks = (y, outputs, *weight)
        size = tf.nest.flatten(tasks)[0].shape[0]
        if tf.executing_eagerly() and size:  # metrics may ask for that
            each = [tf.nest.map_structure(lambda v, i=i: v[i], tasks) for i in range(size)]
            if not self._metrics.built:
                self._metrics.update_state(*without_padding(*each[0]))
            return tf.nest.map_structure(lambda *v: tf.stack(v), *map(self._of_one, each))
        spec = tf.nest.map_structure(lambda v: tf.TensorSpec(v.shape[1:], v.dtype), tasks)
        if not self._metrics.built:
            # Not run: Keras makes the variables of some metrics when it traces their first update.
            tf.function(
                lambda task: self._metrics.update_state(*without_padding(*task)), autograph=False
            ).get_concrete_function(spec)
        one = tf.function(self._of_one, autograph=False)
        values = one.get_concrete_function(spec).structured_outputs
        signature = tf.nest.map_structure(lambda v: tf.TensorSpec(v.shape, v.dtype), values)
        return tf.map_fn(one, tasks, fn_output_signature=signature)

    def _of_one(self, task: tuple[Tensors, ...]) -> dict[str, tf.Tensor]:
        state = self._metrics.stateless_reset_state()
        state = self._metrics.stateless_update_state(state, *without_padding(*task))
        return tf.nest.map_structure(tf.convert_to_tensor, self._metrics.stateless_result(state))


def without_padding(y: Tensors, outputs: Outputs, *weight: Tensors) -> tuple[Tensors, ...]:
    """Returns targets, outputs and weights, if any, of the examples with a weight that is not 0."""
    if not weight:
        return y, outputs
    chosen = example_weights.counts(weight)
    return tf.nest.map_structure(lambda v: tf.boolean_mask(v, chosen), (y, outputs, *weight))
