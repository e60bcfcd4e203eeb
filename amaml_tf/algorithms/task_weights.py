"""The weight of each task in the meta-gradient: equal, unless it failed or is clipped."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import tensorflow as tf

from amaml_tf.algorithms.base import MetaDiagnostics, MetaGradients
from amaml_tf.aliases import Outputs
from amaml_tf.functional.model import FunctionalModel
from amaml_tf.solvers.diagnostics import COMPLETED, AdjointDiagnostics, Diagnostics


class TaskWeights(NamedTuple):
    """The weight of each task in the meta-gradient, `[B]`, and the number of dropped tasks."""

    weights: tf.Tensor
    num_dropped: tf.Tensor

    @classmethod
    def of(cls, arrived: tf.Tensor, dtype: tf.DType) -> TaskWeights:
        """Returns equal weights for the tasks that `arrived` (bool `[B]`), 0 for the others."""
        count = tf.reduce_sum(tf.cast(arrived, dtype))
        weights = tf.cast(arrived, dtype) / tf.maximum(count, 1)
        return cls(weights, tf.size(arrived) - tf.cast(count, tf.int32))

    def clipped(self, per_task: Sequence[tf.Tensor], clip_norm: float | None) -> TaskWeights:
        """Returns lower weights for tasks whose gradient of the initialization exceeds `clip_norm`.

        Meta-gradients have heavy tails, because a flow may amplify λ by orders of magnitude for
        one task of a batch. If their mean were clipped, the other tasks would have no effect.

        Args:
            per_task: the parts `[B, ...]` of that gradient; its norm is that of all parts together.
            clip_norm: largest norm of the gradient of a task; None: no clipping.
        """
        if clip_norm is None:
            return self
        norms = tf.sqrt(tf.add_n([tf.reduce_sum(tf.square(part), axis=-1) for part in per_task]))
        return self._replace(weights=self.weights * clip_norm / tf.maximum(norms, clip_norm))

    def shares(self, per_task: tf.Tensor) -> tf.Tensor:
        """Returns what each task adds to the weighted sum: 0 for dropped tasks, even for NaN."""
        column = tf.reshape(self.weights, [-1] + [1] * (per_task.shape.rank - 1))
        return tf.where(column > 0, column * per_task, 0)

    def mean(self, per_task: tf.Tensor) -> tf.Tensor:
        """Returns the weighted sum over the task axis; dropped tasks do not count."""
        return tf.reduce_sum(self.shares(per_task), axis=0)


def arrived(diagnostics: Diagnostics, losses: tf.Tensor) -> tf.Tensor:
    """Returns which tasks count: those whose flow completed and whose query loss is finite."""
    return (diagnostics.status == COMPLETED) & tf.math.is_finite(losses)


def mean_over_tasks(
    function: FunctionalModel,
    gradients: tf.Tensor,
    losses: tf.Tensor,
    outputs: Outputs,
    forward: Diagnostics,
    backward: AdjointDiagnostics | None = None,
    task_clip_norm: float | None = None,
) -> MetaGradients:
    """Returns the mean meta-gradient of the tasks that count, from the part of each task.

    Args:
        function: model and loss; all parameters are adapted.
        gradients: `[B, P]`, the part of each task.
        losses: `[B]`, as in `MetaGradients`.
        outputs: as in `MetaGradients`.
        forward: as in `MetaDiagnostics`.
        backward: as in `MetaDiagnostics`.
        task_clip_norm: see `TaskWeights.clipped`.
    """
    share = TaskWeights.of(arrived(forward, losses), function.dtype)
    return MetaGradients(
        loss=share.mean(losses),
        gradients=function.layout.unravel(
            share.clipped([gradients], task_clip_norm).mean(gradients)
        ),
        algorithm_gradients=[],
        losses=losses,
        outputs=outputs,
        diagnostics=MetaDiagnostics(forward, backward, share.num_dropped),
    )
