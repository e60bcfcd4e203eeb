"""The statistics that batch normalization keeps: averages over the support sets of many tasks.

A learner that normalizes by the examples at hand never reads the stored statistics, so they are
still those of a new network after training. Whoever predicts with the network outside of the
learner reads nothing else: `serving_default`, Keras's `predict`, ONNX.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from amaml_tf.aliases import PathLike
from amaml_tf.episodes import Episodes, Examples, check_episodes, check_examples
from amaml_tf.errors import UsageError
from amaml_tf.files import write_atomically
from amaml_tf.functional.model import FunctionalModel
from amaml_tf.learner.meta_learner import MetaLearner
from amaml_tf.user_files import read_json

#: Enough for averages that a second set of tasks would not change by more than a few percent.
NUM_TASKS = 128


@dataclasses.dataclass(frozen=True)
class StoredStatistics:
    """Means and variances for the batch normalization layers of a network.

    Attributes:
        values: for each statistic that `variables_of` returns, its average over the tasks.
        num_tasks: the number of tasks.
    """

    values: Sequence[np.ndarray]
    num_tasks: int

    @classmethod
    def gathered(cls, learner: MetaLearner, episodes: Iterable[Episodes]) -> StoredStatistics:
        """Returns the averages over the support sets of the first 128 tasks of `episodes`.

        The network runs on one support set after the other, with noise such as dropout off. The
        result is the average of the means and of the variances that its layers find: what Keras's
        moving averages come close to, without their momentum. A support set that makes them
        infinite or NaN is left out.

        Args:
            learner: a compiled learner.
            episodes: batches; those after the first 128 tasks are not read.

        Raises:
            UsageError: there is no task with finite statistics.
        """
        variables = variables_of(learner)
        sums = _Sums(learner.function.side_by_side(), variables)
        totals: list[np.ndarray] = [np.zeros(v.shape) for v in variables]
        seen = count = 0
        for batch in episodes:
            batch = tf.nest.map_structure(tf.convert_to_tensor, batch)
            check_episodes(batch)
            found, finite = sums.of(batch[0])
            totals = [total + each.numpy() for total, each in zip(totals, found, strict=True)]
            count += int(finite)
            seen += len(tf.nest.flatten(batch[0])[0])
            if seen >= NUM_TASKS:
                break
        if variables and not count:
            raise UsageError(
                "Expected episodes whose support sets have finite statistics of batch "
                f"normalization, got none among {seen}; give episodes of the tasks of training."
            )
        return cls([total / count for total in totals], count)

    def store(self, learner: MetaLearner) -> None:
        """Assigns the values to the layers of the learner's model.

        Raises:
            UsageError: they are those of another network.
        """
        variables = variables_of(learner)
        shapes = [np.shape(value) for value in self.values], [tuple(v.shape) for v in variables]
        if shapes[0] != shapes[1]:
            raise UsageError(
                f"Expected statistics of the shapes {shapes[1]}, got {shapes[0]}; gather them with "
                "this network."
            )
        for variable, value in zip(variables, self.values, strict=True):
            variable.assign(value)

    def write(self, path: PathLike, meta_step: int) -> None:
        """Writes the statistics of a run after `meta_step` to a JSON file."""
        values = [np.asarray(value).tolist() for value in self.values]
        about = {"meta_step": meta_step, "num_tasks": self.num_tasks, "values": values}
        write_atomically(path, json.dumps(about) + "\n")

    @classmethod
    def read(cls, path: PathLike, meta_step: int) -> StoredStatistics | None:
        """Returns what `write` has written; None if it is of another meta-step, or damaged."""
        try:
            about: Any = read_json(path, "statistics of batch normalization")
            if about["meta_step"] != meta_step:
                return None
            values = [np.array(value, np.float64) for value in about["values"]]
            return cls(values, int(about["num_tasks"]))
        except (UsageError, KeyError, TypeError, ValueError):
            return None  # they are gathered anew


def variables_of(learner: MetaLearner) -> list[keras.Variable]:
    """Returns the stored statistics that the learner does not read: those to be gathered.

    There are none if the learner normalizes by stored statistics (`batch_statistics=False`), and
    frozen layers are left out, because they always do.
    """
    if not learner.batch_statistics:
        return []
    layers = learner.model._flatten_layers()  # noqa: SLF001 - Keras has no public recursive list
    own = {
        id(variable)
        for layer in layers
        if isinstance(layer, keras.layers.BatchNormalization) and layer.trainable
        for variable in (layer.moving_mean, layer.moving_variance)
    }
    return [v for v in learner.model.non_trainable_variables if id(v) in own]


def require_statistics(learner: MetaLearner) -> None:
    """Raises UsageError if the stored statistics are those of a new network.

    A network that was trained elsewhere brings statistics of its own.
    """
    values = [variable.numpy() for variable in variables_of(learner)]
    # Each layer has its mean before its variance. A new one has 0 and 1.
    pairs = zip(values[::2], values[1::2], strict=True)
    if any(not mean.any() and (variance == 1).all() for mean, variance in pairs):
        raise UsageError(
            "Expected a network whose batch normalization layers have stored statistics, got the "
            "zeros and ones of a new network, by which Keras would predict badly; pass "
            'statistics_from=family.episodes("train", batch_size=8), episodes to gather them from.'
        )


class _Sums:
    """Sums over the tasks of a batch, compiled once."""

    def __init__(self, function: FunctionalModel, variables: Sequence[keras.Variable]) -> None:
        self._function = function
        places = {id(v): n for n, v in enumerate(function.model.non_trainable_variables)}
        self._places = [places[id(variable)] for variable in variables]
        self._spec = [tf.TensorSpec(v.shape, tf.float64) for v in variables]
        self.of = tf.function(self._of, autograph=False, reduce_retracing=True)

    def _of(self, support: Examples) -> tuple[list[tf.Tensor], tf.Tensor]:
        """Returns the sum of each statistic over the tasks, and of how many tasks it is."""
        function = self._function
        parameters, state = function.parameters(), function.state()

        def one(examples: Examples) -> tuple[list[tf.Tensor], tf.Tensor]:
            found = function.statistics_of(parameters, state, examples)
            each = [tf.cast(found[place], tf.float64) for place in self._places]
            fine = tf.reduce_all([tf.reduce_all(tf.math.is_finite(v)) for v in each])
            return [tf.where(fine, v, 0) for v in each], tf.cast(fine, tf.int32)

        check_examples(support, axis=1)
        values, finite = tf.map_fn(
            one,
            tuple(support),
            fn_output_signature=(self._spec, tf.TensorSpec([], tf.int32)),
            parallel_iterations=8,
        )
        return [tf.reduce_sum(v, axis=0) for v in values], tf.reduce_sum(finite)
