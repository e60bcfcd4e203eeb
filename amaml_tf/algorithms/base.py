"""The interface of a meta-learning algorithm: adaptation to tasks, and the meta-gradient."""

from __future__ import annotations

import abc
from typing import NamedTuple

import keras
import tensorflow as tf

from amaml_tf.aliases import Outputs, Scalar
from amaml_tf.configurable import Configurable
from amaml_tf.episodes import Episodes, Examples
from amaml_tf.errors import UsageError
from amaml_tf.functional.model import FunctionalModel, State
from amaml_tf.registry import Registry
from amaml_tf.solvers.diagnostics import AdjointDiagnostics, Diagnostics


class MetaDiagnostics(NamedTuple):
    """The diagnostics of a meta-gradient.

    Attributes:
        forward: `Diagnostics` of the inner runs, per task.
        backward: `AdjointDiagnostics` per task; None for algorithms without an adjoint.
        num_dropped_tasks: int32 scalar, number of failed tasks, which are left out.
    """

    forward: Diagnostics
    backward: AdjointDiagnostics | None
    num_dropped_tasks: tf.Tensor


class MetaGradients(NamedTuple):
    """The meta-gradient of a batch of episodes.

    For algorithms that train without adaptation, see `NoInnerRun`: losses and outputs are those
    of the initialization.

    Attributes:
        loss: scalar, mean query loss after adaptation.
        gradients: aligned with `model.trainable_variables`.
        algorithm_gradients: aligned with the algorithm's own variables.
        losses: `[B]`, query loss of each task after adaptation.
        outputs: outputs of the model on the query sets after adaptation, task axis first.
        diagnostics: `MetaDiagnostics`.
    """

    loss: tf.Tensor
    gradients: list[tf.Tensor]
    algorithm_gradients: list[tf.Tensor]
    losses: tf.Tensor
    outputs: Outputs
    diagnostics: MetaDiagnostics


class Algorithm(Configurable, abc.ABC):
    """A way to adapt to a task, and its meta-gradient.

    An algorithm need not have a flow, or any inner run: see `FlowBased` for those with a flow.

    Attributes:
        variables: the algorithm's own meta-parameters, learned together with the initialization.
        needs_places: whether a task's part of the meta-gradient depends on where the task stands in
            the meta-batch. `meta_gradients` then has a further argument `places`.
    """

    needs_places = False

    def __init__(self) -> None:
        self.variables: list[keras.Variable] = []

    def adapted(self, model: keras.Model) -> list[bool] | None:
        """Returns for every trainable variable whether adaptation changes it; None for all."""
        del model
        return None

    def build(self, function: FunctionalModel) -> None:
        """Creates the algorithm's own meta-parameters, in `variables`."""
        del function

    def final_time(self) -> Scalar:
        """Returns the time of adaptation: T of a flow; 1 for algorithms without a time."""
        return 1.0

    @abc.abstractmethod
    def adapt(
        self, function: FunctionalModel, state: State, support: Examples
    ) -> tuple[tf.Tensor, Diagnostics]:
        """Adapts the model's current variables to every task of a batch of support sets.

        Args:
            function: model and loss.
            state: values of the model's non-trainable variables.
            support: (x, y) or (x, y, weight), task axis first.

        Returns:
            The adapted parameters `[B, P]`, NaN for a failed task, and the diagnostics per task.
        """

    def advance(
        self,
        function: FunctionalModel,
        state: State,
        support: Examples,
        adapted: tf.Tensor,
        stretch: tf.Tensor,
        longest: float,
    ) -> tuple[tf.Tensor, Diagnostics]:
        """Continues the adaptation of a batch of tasks from `adapted`.

        Args:
            function: model and loss.
            state: values of the model's non-trainable variables.
            support: (x, y) or (x, y, weight), task axis first.
            adapted: `[B, P]`, the parameters reached so far.
            stretch: scalar, for how long to continue.
            longest: the longest stretch of this adaptation.

        Raises:
            UsageError: if the algorithm has no inner run that can be continued.
        """
        del function, state, support, adapted, stretch, longest
        raise UsageError(
            "Expected an algorithm that adapts along a flow, to measure at several times, got "
            f"{type(self).__name__}; measure at the end of its own adaptation, or along the steps "
            "of a Keras optimizer."
        )

    def places(self, num_tasks: int | tf.Tensor, dtype: tf.DType) -> tf.Tensor:
        """Returns where each task stands in its meta-batch, `[B]`: (i + 1/2) / B."""
        return (tf.range(num_tasks, dtype=dtype) + 0.5) / tf.cast(num_tasks, dtype)

    @abc.abstractmethod
    def meta_gradients(
        self,
        function: FunctionalModel,
        state: State,
        episodes: Episodes,
        task_clip_norm: float | None = None,
    ) -> MetaGradients:
        """Returns the meta-gradient of a batch of episodes at the model's current variables.

        Args:
            function: model and loss.
            state: values of the model's non-trainable variables.
            episodes: a batch, every array with the task axis first.
            task_clip_norm: see `TaskWeights.clipped`. None (default): no clipping.
        """


#: Algorithms, by the names that flags use.
REGISTRY: Registry[Algorithm] = Registry("algorithm")
