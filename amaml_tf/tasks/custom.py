"""Task families of your own: from a Python function or from a `tf.data.Dataset`."""

import inspect
import itertools
from collections.abc import Callable, Iterator, Mapping
from typing import TypeAlias, cast

import numpy as np
import tensorflow as tf

from amaml_tf.errors import UsageError
from amaml_tf.tasks.base import SPLITS, TaskFamily
from amaml_tf.tasks.yielded import as_dtype, as_numbers

Array: TypeAlias = np.ndarray | tf.Tensor
#: `((support_x, support_y), (query_x, query_y))` of one task.
Episode: TypeAlias = tuple[tuple[Array, Array], tuple[Array, Array]]
#: The specs of the arrays of an episode, in the same structure.
Specs: TypeAlias = tuple[tuple[tf.TensorSpec, tf.TensorSpec], tuple[tf.TensorSpec, tf.TensorSpec]]
#: A function that makes one episode of a split, or a generator function that yields episodes.
EpisodeFunction: TypeAlias = Callable[[str, np.random.Generator], Episode | Iterator[Episode]]

# The arrays of an episode, for messages.
_NAMES = ("support_x", "support_y", "query_x", "query_y")


def from_function(
    function: EpisodeFunction,
    *,
    kind: str = "regression",
    num_outputs: int | None = None,
    splits: tuple[str, ...] = SPLITS,
    dtype: str = "float32",
) -> TaskFamily:
    """Returns a task family from a function that makes episodes of one task as NumPy arrays.

        def episode(split, rng):
            slope = rng.uniform(1, 2) if split == "train" else rng.uniform(2, 3)
            x = rng.uniform(-1, 1, size=(20, 1))
            return (x[:10], slope * x[:10]), (x[10:], slope * x[10:])

        family = from_function(episode)

    Args:
        function: `function(split, rng)`, where `rng` is a `numpy.random.Generator` to draw from. It
            either returns one episode `((support_x, support_y), (query_x, query_y))` and is called
            with a new `rng` for every episode, or it is a generator function that yields episodes.
            With a generator function, a resumed run skips the episodes already seen. Shapes may
            differ between training and the other splits, but not within a split. Inputs are
            [examples, ...]. Targets are [examples, num_outputs] (regression) or integers from 0 to
            num_outputs - 1 of shape [examples] (classification).
        kind: "regression" or "classification".
        num_outputs: how many numbers to predict, or how many classes a task has; None: taken from
            the targets (regression only).
        splits: the splits that `function` has.
        dtype: floating-point type that inputs and regression targets are cast to.

    Returns:
        A `TaskFamily`.

    Raises:
        UsageError: the first episode of a split does not have this form.
    """
    return _FunctionTasks(function, kind, num_outputs, splits, dtype)


def from_dataset(
    train: tf.data.Dataset,
    *,
    validation: tf.data.Dataset | None = None,
    test: tf.data.Dataset | None = None,
    kind: str = "regression",
    num_outputs: int | None = None,
    dtype: str = "float32",
) -> TaskFamily:
    """Returns a task family from data sets whose elements are episodes of one task.

    Each data set is repeated and batched, and not changed otherwise. Its order, and whether every
    run has the same order, depend on the data set alone. The `seed` of `episodes` has no effect.

    Args:
        train: elements `((support_x, support_y), (query_x, query_y))` of static shapes, without a
            task axis; inputs and targets as in `from_function`.
        validation: the same for the split "validation"; None: there is no such split.
        test: the same for the split "test"; None: there is no such split.
        kind: "regression" or "classification".
        num_outputs: how many numbers to predict, or how many classes a task has; None: taken from
            the targets (regression only).
        dtype: floating-point type that inputs and regression targets are cast to.

    Returns:
        A `TaskFamily`.

    Raises:
        UsageError: the elements of a data set do not have this form.
    """
    given = {"train": train, "validation": validation, "test": test}
    datasets = {split: dataset for split, dataset in given.items() if dataset is not None}
    return _DatasetTasks(datasets, kind, num_outputs, dtype)


class _CustomTasks(TaskFamily):
    """A family whose sizes come from one sample per split, of arrays or of `tf.TensorSpec`s."""

    def __init__(
        self, samples: Mapping[str, Episode | Specs], kind: str, num_outputs: int | None, dtype: str
    ) -> None:
        if "train" not in samples:
            raise UsageError(
                f"Expected a split 'train' among the splits, got {tuple(samples)}; add it."
            )
        for split, sample in samples.items():
            _require_examples(sample, split)
        (support_x, support_y), (query_x, _) = samples["train"]
        test = samples.get("test", samples.get("validation", samples["train"]))
        (test_support_x, _), (test_query_x, _) = test
        self.splits = tuple(samples)
        super().__init__(
            kind=kind,
            input_shape=tuple(support_x.shape[1:]),
            num_outputs=_outputs_of(support_y, kind) if num_outputs is None else num_outputs,
            num_support=support_x.shape[0],
            num_query=query_x.shape[0],
            num_test_support=test_support_x.shape[0],
            num_test_query=test_query_x.shape[0],
            dtype=dtype,
        )
        for split, sample in samples.items():
            self._require_shapes(sample, split)

    def _signature(self, split: str) -> Specs:
        """Returns the `tf.TensorSpec`s of the episodes of `split` that this family gives."""

        def examples(size: int) -> tuple[tf.TensorSpec, tf.TensorSpec]:
            x = tf.TensorSpec((size, *self.input_shape), self.dtype)
            if self.kind == "classification":
                return x, tf.TensorSpec((size,), tf.int32)
            return x, tf.TensorSpec((size, self.num_outputs), self.dtype)

        num_support, num_query = self.sizes(split)
        return examples(num_support), examples(num_query)

    def _require_shapes(self, episode: Episode | Specs, split: str) -> None:
        expected_specs = tf.nest.flatten(self._signature(split))
        for name, expected, came in zip(
            _NAMES, expected_specs, tf.nest.flatten(episode), strict=True
        ):
            if tuple(came.shape) != tuple(expected.shape):
                raise UsageError(
                    f"Expected {name} of shape {tuple(expected.shape)} in split {split!r} of a "
                    f"{self.kind} family, got {tuple(came.shape)}; give all episodes the shapes of "
                    "the first, regression targets as [examples, outputs], labels as [examples]."
                )


class _FunctionTasks(_CustomTasks):
    def __init__(
        self,
        function: EpisodeFunction,
        kind: str,
        num_outputs: int | None,
        splits: tuple[str, ...],
        dtype: str,
    ) -> None:
        self._function = function
        samples = {split: self._sample(split) for split in splits}
        super().__init__(samples, kind, num_outputs, dtype)
        for split, sample in samples.items():
            self._checked(sample, split)

    def _stream(self, split: str, seed: int, first: int) -> tf.data.Dataset:
        def checked_episodes() -> Iterator[Episode]:
            for episode in self._raw_episodes(split, seed, first):
                yield self._checked(episode, split)

        signature = self._signature(split)
        return tf.data.Dataset.from_generator(checked_episodes, output_signature=signature)

    def _sample(self, split: str) -> Episode:
        """Returns the first episode of a split, which tells the sizes."""
        if split not in SPLITS:
            raise UsageError(f"Expected splits of {SPLITS}, got {split!r}; rename it.")
        for episode in self._raw_episodes(split, seed=0, first=0):
            return episode
        raise UsageError(
            f"Expected episodes in split {split!r}, got none; yield some, or leave the split out."
        )

    def _raw_episodes(self, split: str, seed: int, first: int) -> Iterator[Episode]:
        stream = (seed % 2**64, SPLITS.index(split))  # NumPy's seeds cannot be negative
        episodes: Iterator[Episode | Iterator[Episode]]
        if inspect.isgeneratorfunction(self._function):
            generated = self._function(split, np.random.default_rng(stream))
            episodes = itertools.islice(generated, first, None)
        else:
            episodes = (
                self._function(split, np.random.default_rng((*stream, number)))
                for number in itertools.count(first)
            )
        for episode in episodes:
            (support_x, support_y), (query_x, query_y) = _as_episode(episode, split)
            arrays = (support_x, support_y, query_x, query_y)
            numbers = [as_numbers(*each, split) for each in zip(arrays, _NAMES, strict=True)]
            yield (numbers[0], numbers[1]), (numbers[2], numbers[3])

    def _checked(self, episode: Episode, split: str) -> Episode:
        self._require_shapes(episode, split)
        if self.kind == "classification":
            for _, labels in episode:
                self._require_labels(labels, split)
        return tf.nest.map_structure(
            lambda spec, array, name: as_dtype(array, spec.dtype, name, split),
            self._signature(split),
            episode,
            (_NAMES[:2], _NAMES[2:]),
        )

    def _require_labels(self, labels: np.ndarray, split: str) -> None:
        if labels.min() < 0 or labels.max() >= self.num_outputs:
            raise UsageError(
                f"Expected labels from 0 to {self.num_outputs - 1} in split {split!r}, got "
                f"{labels.min()} to {labels.max()}; number the classes of each task from 0, or "
                "pass a larger num_outputs."
            )


class _DatasetTasks(_CustomTasks):
    def __init__(
        self,
        datasets: dict[str, tf.data.Dataset],
        kind: str,
        num_outputs: int | None,
        dtype: str,
    ) -> None:
        self._datasets = datasets
        specs = {
            split: _as_episode(dataset.element_spec, split) for split, dataset in datasets.items()
        }
        super().__init__(specs, kind, num_outputs, dtype)

    def _stream(self, split: str, seed: int, first: int) -> tf.data.Dataset:
        dataset = self._datasets[split]
        size = int(dataset.cardinality())
        signature = self._signature(split)
        # Skipping whole passes over a repeated data set would change nothing and take long.
        start = first % size if size > 0 else first
        return (
            dataset.repeat()
            .skip(start)
            .map(
                lambda support, query: tf.nest.map_structure(
                    lambda spec, tensor: tf.cast(tensor, spec.dtype), signature, (support, query)
                )
            )
        )


def _as_episode(value: object, split: str) -> Episode:
    """Returns `value` as a pair of pairs; raises UsageError if it is none."""
    try:
        (support_x, support_y), (query_x, query_y) = cast(Episode, value)
    except (TypeError, ValueError) as error:
        raise UsageError(
            "Expected episodes of one task ((support_x, support_y), (query_x, query_y)) in split "
            f"{split!r}, got {_described(value)}; give a pair of pairs of arrays."
        ) from error
    return (support_x, support_y), (query_x, query_y)


def _described(value: object) -> str:
    """Returns the structure and the shapes of `value` in one line."""
    if isinstance(value, tuple | list):
        return f"({', '.join(map(_described, value))})"
    if hasattr(value, "shape"):
        return f"an array of shape {tuple(value.shape)}"
    return f"{value!r:.50}"


def _require_examples(episode: Episode | Specs, split: str) -> None:
    for part in tf.nest.flatten(episode):
        if len(part.shape) == 0 or not tf.TensorShape(part.shape).is_fully_defined():
            raise UsageError(
                f"Expected arrays of examples with static shapes in split {split!r}, got shape "
                f"{tuple(part.shape)}; put an axis of examples first, and in a tf.data.Dataset set "
                "the shapes with tf.ensure_shape."
            )


def _outputs_of(support_y: Array | tf.TensorSpec, kind: str) -> int:
    """Returns the number of outputs of a regression task, from its targets."""
    if kind == "classification":
        raise UsageError(
            "Expected num_outputs, the number of classes of a task, for a classification family, "
            "got None; pass it."
        )
    if len(support_y.shape) != 2:
        raise UsageError(
            f"Expected regression targets of shape [examples, outputs], got "
            f"{tuple(support_y.shape)}; reshape them, for example with y[:, np.newaxis]."
        )
    return int(support_y.shape[1])
