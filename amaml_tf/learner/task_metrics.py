"""Keras metrics of each task of a batch by itself, as `Model.evaluate` reports them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import tensorflow as tf

# `Model.compile(metrics=...)` makes this from names, objects, lists and dicts. Keras has no public
# name for it.
from keras.src.trainers.compile_utils import CompileMetrics

from amaml_tf.aliases import Outputs, Tensors
from amaml_tf.functional import example_weights
from amaml_tf.functional.model import FunctionalModel
from amaml_tf.functional.output_masks import OutputMasks, masked

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
        function: model and loss, for the masks of outputs, and for the loss of each of several
            outputs, which Keras reports too. None: there are none of these.
    """

    def __init__(
        self,
        metrics: Metrics | None,
        weighted_metrics: Metrics | None = None,
        output_names: Sequence[str] | None = None,
        function: FunctionalModel | None = None,
    ) -> None:
        masks_of = None if function is None else OutputMasks(function)
        self._masks_of = masks_of if masks_of is not None and masks_of.may_be else None
        self._loss = None if function is None else function.loss
        self._has_any = bool(metrics) or bool(weighted_metrics)
        self._metrics = CompileMetrics(metrics, weighted_metrics, output_names=output_names)

    def __call__(
        self, y: Tensors, outputs: Outputs, *weight: Tensors, x: Tensors = ()
    ) -> dict[str, tf.Tensor]:
        """Returns the metrics by name, `[B]` each, or `[B, ...]` if they have several values.

        Args:
            y: targets, task axis first.
            outputs: outputs of the model, task axis first.
            *weight: weights of the examples, if they have any.
            x: inputs, task axis first, for the masks of the outputs.
        """
        several = self._loss is not None and tf.nest.is_nested(outputs)
        if not self._has_any and not several:
            return {}
        tasks = (() if self._masks_of is None else x, y, outputs, *weight)
        size = tf.nest.flatten(tasks)[0].shape[0]
        if tf.executing_eagerly() and size:  # metrics may ask for that
            each = [tf.nest.map_structure(lambda v, i=i: v[i], tasks) for i in range(size)]
            if self._has_any and not self._metrics.built:
                self._metrics.update_state(*self._arguments(*each[0]))
            return tf.nest.map_structure(lambda *v: tf.stack(v), *map(self._of_one, each))
        spec = tf.nest.map_structure(lambda v: tf.TensorSpec(v.shape[1:], v.dtype), tasks)
        if self._has_any and not self._metrics.built:
            # Not run: Keras makes the variables of some metrics when it traces their first update.
            made = tf.function(
                lambda task: self._metrics.update_state(*self._arguments(*task)), autograph=False
            )
            made.get_concrete_function(spec)
        one = tf.function(self._of_one, autograph=False)
        values = one.get_concrete_function(spec).structured_outputs
        if not values:  # there is one loss, for one of several outputs
            return {}
        signature = tf.nest.map_structure(lambda v: tf.TensorSpec(v.shape, v.dtype), values)
        return tf.map_fn(one, tasks, fn_output_signature=signature)

    def _of_one(self, task: tuple[Tensors, ...]) -> dict[str, tf.Tensor]:
        arguments = self._arguments(*task)
        found = {} if self._loss is None else self._loss.by_output(*arguments)
        if self._has_any:
            state = self._metrics.stateless_reset_state()
            state = self._metrics.stateless_update_state(state, *arguments)
            found |= self._metrics.stateless_result(state)
        return _flattened(found)

    def _arguments(
        self, x: Tensors, y: Tensors, outputs: Outputs, *weight: Tensors
    ) -> tuple[Tensors, ...]:
        """Returns targets, outputs and weights, if any, of the examples that count."""
        chosen = example_weights.counts(weight) if weight else None
        masks: list[tf.Tensor | None] = []
        if self._masks_of is not None:
            masks = self._masks_of(x if chosen is None else example_weights.filled(x, chosen))
        if chosen is not None:
            y, outputs, masks, *weight = tf.nest.map_structure(
                lambda v: None if v is None else tf.boolean_mask(v, chosen),
                (y, outputs, masks, *weight),
            )
        # Keras multiplies weights by masks without new axes.
        rank = max((mask.shape.rank for mask in masks if mask is not None), default=0)
        weight = tf.nest.map_structure(lambda w: _to_rank(w, rank), weight)
        return y, masked(outputs, masks), *weight


def _flattened(results: Mapping[str, Any]) -> dict[str, tf.Tensor]:
    """Returns results by name; those of a metric with several by their own names, as in Keras."""
    found: dict[str, tf.Tensor] = {}
    for name, value in results.items():
        found |= _flattened(value) if isinstance(value, dict) else {name: value}
    return {name: tf.convert_to_tensor(value) for name, value in found.items()}


def _to_rank(values: tf.Tensor, rank: int) -> tf.Tensor:
    while values.shape.rank < rank:
        values = values[..., tf.newaxis]
    return values
