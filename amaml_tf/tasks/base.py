"""The base class of all task families: streams of episodes, a loss and metrics."""

import abc
from typing import Any, TypeAlias

import keras
import numpy as np
import tensorflow as tf

from amaml_tf.errors import UsageError
from amaml_tf.registry import Registry
from amaml_tf.tasks.sizes import Size, SizeRange, require_positive, size_range
from amaml_tf.units import Units

#: (x, y) or (x, y, weight) of a set of examples.
Examples: TypeAlias = tuple[tf.Tensor, tf.Tensor] | tuple[tf.Tensor, tf.Tensor, tf.Tensor]
#: One task: ((support_x, support_y), (query_x, query_y)). A batch puts a task axis in front.
Episode: TypeAlias = tuple[Examples, Examples]

#: A loss, or losses by the names or the order of several outputs.
Losses: TypeAlias = keras.losses.Loss | dict[str, keras.losses.Loss] | tuple[keras.losses.Loss, ...]
#: Metrics in a list, or by the names or the order of several outputs.
Metrics: TypeAlias = (
    list[keras.metrics.Metric] | dict[str, keras.metrics.Metric] | tuple[keras.metrics.Metric, ...]
)
#: A word, a shape or a number, or one for each of several inputs or outputs, by name or in order.
Kind: TypeAlias = str | dict[str, str] | tuple[str, ...]
InputShape: TypeAlias = (
    tuple[int | None, ...] | dict[str, tuple[int | None, ...]] | tuple[tuple[int | None, ...], ...]
)
NumOutputs: TypeAlias = int | dict[str, int] | tuple[int, ...]

SPLITS = ("train", "validation", "test")
KINDS = ("regression", "classification")


class TaskFamily(abc.ABC):
    """A source of small tasks of one kind, each with a support set and a query set.

    A task is learned from its support set and evaluated on its query set. A subclass passes the
    sizes to this constructor and implements `_stream`, which gives episodes of one task each.

    A size is a number, or a range `(1, 10)` if the family can take one. Episodes are then padded to
    the largest size, and have weights: 1 for an example that counts, 0 for one that only fills its
    place.

    Args:
        kind: "regression" (float targets of shape [examples, num_outputs]) or "classification"
            (int32 labels of shape [examples]).
        input_shape: shape of one input, without a batch axis.
        num_outputs: how many numbers the network predicts (regression), or how many classes a
            task has (classification).
        num_support: support examples of a training task; for classification, per class.
        num_query: query examples of a training task; for classification, per class.
        num_test_support: the same for validation and test tasks; None: as in training.
        num_test_query: the same for validation and test tasks; None: as in training.
        dtype: floating-point type of inputs and regression targets.

    Raises:
        UsageError: a size is not positive, or is a range and the family cannot take one, or `kind`
            is unknown.
    """

    splits: tuple[str, ...] = SPLITS
    #: Whether the sizes may be ranges. A subclass that sets this gives weights where `size_ranges`
    #: vary.
    takes_ranges = False

    def __init__(
        self,
        *,
        kind: Kind,
        input_shape: InputShape,
        num_outputs: NumOutputs,
        num_support: Size,
        num_query: Size,
        num_test_support: Size | None = None,
        num_test_query: Size | None = None,
        dtype: str = "float32",
    ) -> None:
        for each in tf.nest.flatten(kind):
            if each not in KINDS:
                raise UsageError(
                    f"Expected kind to be one of {KINDS}, got {each!r}; use one of them."
                )
        for number in tf.nest.flatten(num_outputs):
            require_positive("num_outputs", number)
        # With several inputs or outputs, they have the structure of these.
        self.kind: Any = kind
        self.input_shape: Any = input_shape
        self.num_outputs: Any = num_outputs
        self.dtype = dtype
        test_support = num_support if num_test_support is None else num_test_support
        test_query = num_query if num_test_query is None else num_test_query
        self._train_sizes = (
            self._range("num_support", num_support),
            self._range("num_query", num_query),
        )
        self._test_sizes = (
            self._range("num_test_support", test_support),
            self._range("num_test_query", test_query),
        )

    def sizes(self, split: str) -> tuple[int, int]:
        """Returns how many support and query examples a task has, at most.

        A family that draws classes counts the examples of each class.
        """
        support, query = self.size_ranges(split)
        return support.high, query.high

    def size_ranges(self, split: str) -> tuple[SizeRange, SizeRange]:
        """Returns the smallest and the largest number of support and query examples of a task.

        A family that draws classes counts the examples of each class.
        """
        return self._train_sizes if split == "train" else self._test_sizes

    def _range(self, name: str, size: Size) -> SizeRange:
        found = size_range(name, size)
        if found.varies and not self.takes_ranges:
            raise UsageError(
                f"Expected {name} to be one number for {type(self).__name__}, got the range "
                f"{found.low} to {found.high}; pass one number."
            )
        return found

    @property
    def units(self) -> Units | None:
        """How examples in the family's own units become those of the episodes; None: as they are.

        Labels are always as they are.
        """
        return None

    @property
    def loss(self) -> Losses:
        """The loss of both support and query sets, for predictions [examples, outputs].

        For several outputs, losses in their structure.
        """
        return tf.nest.map_structure(_loss, self.kind)

    def metrics(self) -> Metrics:
        """Returns new Keras metrics: "rmse" (regression) or "accuracy" (classification).

        For several outputs, metrics in their structure.
        """
        if tf.nest.is_nested(self.kind):
            return tf.nest.map_structure(_metric, self.kind)
        return [_metric(self.kind)]

    def episodes(
        self,
        split: str,
        *,
        batch_size: int,
        seed: int = 0,
        start: int = 0,
        num_batches: int | None = None,
    ) -> tf.data.Dataset:
        """Returns a stream of episode batches `((support_x, support_y), (query_x, query_y))`.

        If tasks have different sizes, it is `((support_x, support_y, support_weight), (query_x,
        query_y, query_weight))`, with weights of shape [tasks, examples] and of the family's dtype.

        Element i depends only on (seed, split, start + i), so a run that resumes at `start`
        continues the same stream. No global random state is read or changed.

        Args:
            split: one of `splits`.
            batch_size: tasks in a batch, the first axis of every array.
            seed: selects the stream.
            start: number of the first batch, from 0.
            num_batches: number of batches; None: no limit.

        Returns:
            A `tf.data.Dataset`. Its shapes are static, except where tasks of a user's own are
            padded to the largest of the batch.

        Raises:
            UsageError: unknown split, or a size that is not positive.
        """
        self.require_split(split)
        require_positive("batch_size", batch_size)
        if start < 0:
            raise UsageError(
                f"Expected start to be the number of a batch, 0 or more, got {start}; "
                "pass 0 to begin at the beginning."
            )
        tasks = self._stream(split, seed, start * batch_size)
        batches = self._batches(tasks, batch_size)
        if num_batches is not None:
            batches = batches.take(require_positive("num_batches", num_batches))
        return batches.prefetch(tf.data.AUTOTUNE)

    def num_different_episodes(self, split: str) -> int | None:
        """Returns how many different episodes `split` has; None if there is no limit."""
        self.require_split(split)
        return None

    def task_indices(self, split: str, *, seed: int = 0, count: int) -> np.ndarray | None:
        """Returns the task of each of the first `count` episodes, int64 of shape [count].

        Args:
            split: one of `splits`.
            seed: selects the stream of `episodes`.
            count: number of episodes.

        Returns:
            The indices of the tasks, or None if every episode counts as a different task.
        """
        del seed, count
        self.require_split(split)
        return None

    def require_split(self, split: str) -> None:
        """Raises UsageError unless this family has the split `split`."""
        if split not in self.splits:
            raise UsageError(
                f"Expected split to be one of {self.splits} for {type(self).__name__}, "
                f"got {split!r}; use one of them."
            )

    def _batches(self, tasks: tf.data.Dataset, batch_size: int) -> tf.data.Dataset:
        """Returns batches of what `_stream` gives, without an incomplete last one."""
        return tasks.batch(batch_size, drop_remainder=True)

    @abc.abstractmethod
    def _stream(self, split: str, seed: int, first: int) -> tf.data.Dataset:
        """Returns episodes of one task each, from number `first` on; endless if possible."""


def _loss(kind: str) -> keras.losses.Loss:
    if kind == "regression":
        return keras.losses.MeanSquaredError()
    return keras.losses.SparseCategoricalCrossentropy(from_logits=True)


def _metric(kind: str) -> keras.metrics.Metric:
    if kind == "regression":
        return keras.metrics.RootMeanSquaredError(name="rmse")
    return keras.metrics.SparseCategoricalAccuracy(name="accuracy")


#: Families, by the names that flags use. They take keyword arguments only.
REGISTRY: Registry[TaskFamily] = Registry("task")


def stream_seed(seed: int, split: str, purpose: str) -> tf.Tensor:
    """Returns the seed (int64 of shape [2]) of a random stream that only `purpose` uses."""
    purposes = ("episodes", "order", "tasks", "scaler", "single")
    return tf.constant(
        [seed, SPLITS.index(split) + len(SPLITS) * purposes.index(purpose)], tf.int64
    )


def fold_in(seed: tf.Tensor, number: int | tf.Tensor) -> tf.Tensor:
    """Returns the seed (int64 of shape [2]) of element `number` of the random stream `seed`.

    `tf.random.fold_in` gives different numbers for different integer types; here all are int64.
    """
    return tf.random.fold_in(seed, tf.cast(number, tf.int64))
