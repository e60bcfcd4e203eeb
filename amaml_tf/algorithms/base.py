"""What every meta-learning algorithm does: adapt tasks, and turn episodes into a meta-gradient."""

from __future__ import annotations

import abc
from collections.abc import Sequence
from typing import Any, NamedTuple

import keras
import tensorflow as tf

from amaml_tf.adaptation import Adaptation, Start, adapt
from amaml_tf.functional import FunctionalModel
from amaml_tf.gradient_flow import GradientFlow
from amaml_tf.solvers.diagnostics import COMPLETED, Diagnostics

Episodes = tuple[tuple[Any, Any], tuple[Any, Any]]


class MetaDiagnostics(NamedTuple):
    """What a meta-gradient took.

    Attributes:
        forward: `Diagnostics` of the inner runs, per task.
        backward: `AdjointDiagnostics` per task; None for algorithms without an adjoint.
        num_dropped_tasks: int32 scalar, failed tasks that were left out.
    """

    forward: Diagnostics
    backward: Any
    num_dropped_tasks: tf.Tensor


class MetaGradients(NamedTuple):
    """The meta-gradient of a batch of episodes.

    "After adaptation" is as it says but for algorithms that train without (see `NoInnerRun`).

    Attributes:
        loss: scalar, mean query loss after adaptation.
        gradients: aligned with `model.trainable_variables`.
        algorithm_gradients: aligned with the algorithm's own variables.
        losses: `[B]`, query loss of each task after adaptation.
        outputs: of the model on the query sets after adaptation, task axis first.
        diagnostics: `MetaDiagnostics`.
    """

    loss: tf.Tensor
    gradients: list[tf.Tensor]
    algorithm_gradients: list[tf.Tensor]
    losses: tf.Tensor
    outputs: Any
    diagnostics: MetaDiagnostics


class Algorithm(abc.ABC):
    """A way to adapt to a task, and the meta-gradient that goes with it.

    Args:
        flow: the inner training run.
    """

    def __init__(self, flow: GradientFlow) -> None:
        self.flow = flow
        self.variables: list[keras.Variable] = []

    def adapted(self, model: keras.Model) -> list[bool] | None:
        """Marks the trainable variables that adaptation changes; None for all of them."""
        del model
        return None

    def build(self, function: FunctionalModel) -> None:
        """Creates the algorithm's own meta-parameters, in `variables`."""
        del function

    def final_time(self) -> Any:
        """Returns T, a number or a scalar tensor."""
        return self.flow.final_time

    def start(self, function: FunctionalModel, parameters: Sequence[Any], num_tasks: int) -> Start:
        """Returns the same start for `num_tasks` tasks, from a list of trainable parameters."""
        adapted, held = function.ravel(parameters)
        rates = self._rates(adapted)

        def for_every_task(vector: tf.Tensor) -> tf.Tensor:
            return tf.tile(vector[tf.newaxis], [num_tasks, 1])

        return Start(*(for_every_task(vector) for vector in (adapted, held, rates)))

    def _rates(self, adapted: tf.Tensor) -> tf.Tensor:
        return adapted[:0]

    def adapt(
        self,
        function: FunctionalModel,
        state: list[tf.Tensor],
        support: tuple[Any, Any],
        start: Start,
        **options: Any,
    ) -> Adaptation:
        """Runs the inner training of every task; see `amaml_tf.adaptation.adapt`."""
        options = {"final_time": self.final_time(), **options}
        return adapt(self.flow, function, state, support, start, **options)

    @abc.abstractmethod
    def meta_gradients(
        self,
        function: FunctionalModel,
        state: list[tf.Tensor],
        episodes: Episodes,
        task_clip_norm: float | None = None,
    ) -> MetaGradients:
        """Returns the meta-gradient of a batch of episodes at the model's current variables.

        Args:
            function: model and loss.
            state: values of the model's non-trainable variables.
            episodes: a batch, every array with the task axis first.
            task_clip_norm: see `TaskWeights.clipped`; None clips nothing.
        """


class TaskWeights(NamedTuple):
    """Each task's share of the meta-gradient `[B]`, and how many tasks have none."""

    weights: tf.Tensor
    num_dropped: tf.Tensor

    @classmethod
    def of(cls, arrived: tf.Tensor, dtype: tf.DType) -> TaskWeights:
        """Equal shares for the tasks that `arrived` (bool `[B]`)."""
        count = tf.reduce_sum(tf.cast(arrived, dtype))
        weights = tf.cast(arrived, dtype) / tf.maximum(count, 1)
        return cls(weights, tf.size(arrived) - tf.cast(count, tf.int32))

    def clipped(self, per_task: Sequence[tf.Tensor], clip_norm: float | None) -> TaskWeights:
        """Less for a task whose gradient of the initialization has a norm above `clip_norm`.

        Meta-gradients have heavy tails, because a flow may amplify λ by orders of magnitude for
        one task of a batch: if their mean were clipped, the other tasks would have no say.

        Args:
            per_task: the parts `[B, ...]` of that gradient, whose norm is that of all together.
            clip_norm: None changes nothing.
        """
        if clip_norm is None:
            return self
        norms = tf.sqrt(tf.add_n([tf.reduce_sum(tf.square(part), axis=-1) for part in per_task]))
        return self._replace(weights=self.weights * clip_norm / tf.maximum(norms, clip_norm))

    def shares(self, per_task: tf.Tensor) -> tf.Tensor:
        """What each task adds to the weighted sum; values of dropped tasks, NaN too, are 0."""
        column = tf.reshape(self.weights, [-1] + [1] * (per_task.shape.rank - 1))
        return tf.where(column > 0, column * per_task, 0)

    def mean(self, per_task: tf.Tensor) -> tf.Tensor:
        """Weighted sum over the task axis; dropped tasks don't count."""
        return tf.reduce_sum(self.shares(per_task), axis=0)


def arrived(diagnostics: Diagnostics, losses: tf.Tensor) -> tf.Tensor:
    """Returns which tasks count: those whose flow completed and whose query loss is finite."""
    return (diagnostics.status == COMPLETED) & tf.math.is_finite(losses)


def mean_over_tasks(
    function: FunctionalModel,
    gradients: tf.Tensor,
    losses: tf.Tensor,
    outputs: Any,
    forward: Diagnostics,
    backward: Any = None,
    task_clip_norm: float | None = None,
) -> MetaGradients:
    """Returns the meta-gradient whose part of each task is known: the mean of those that count.

    Args:
        function: model and loss, all of whose parameters are adapted.
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


def number_of_tasks(episodes: Any) -> int:
    """Returns the static size of the task axis.

    Raises:
        ValueError: if it is not known when the program is traced.
    """
    size = tf.nest.flatten(episodes)[0].shape[0]
    if size is None:
        raise ValueError(
            "Expected a static number of tasks in a batch, got an unknown one. Batch the episodes "
            "with drop_remainder=True."
        )
    return size
