"""The families behind `from_function` and `from_dataset`."""

from __future__ import annotations

import inspect
import itertools
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeAlias

import numpy as np
import tensorflow as tf

from amaml_tf.errors import UsageError
from amaml_tf.tasks import late_errors
from amaml_tf.tasks.base import SPLITS, TaskFamily
from amaml_tf.tasks.episode_checks import (
    as_arrays,
    as_episode,
    require_examples,
    require_form,
    require_labels,
    require_labels_in_graph,
    require_sizes,
    with_types,
)
from amaml_tf.tasks.episode_form import Episode, EpisodeForm, FormArguments, Padding
from amaml_tf.tasks.padding import padded_batches
from amaml_tf.tasks.sizes import SizeRange

#: A function that makes one episode of a split, or a generator function that yields episodes.
EpisodeFunction: TypeAlias = Callable[[str, np.random.Generator], Episode | Iterator[Episode]]


class CustomTasks(TaskFamily):
    """A family whose form comes from one sample per split, of arrays or of `tf.TensorSpec`s.

    With several inputs or outputs, `kind`, `num_outputs` and `input_shape` have their structure.
    """

    takes_ranges = True

    def __init__(self, samples: Mapping[str, Episode], arguments: FormArguments) -> None:
        if "train" not in samples:
            raise UsageError(
                f"Expected a split 'train' among the splits, got {tuple(samples)}; add it."
            )
        self.splits = tuple(samples)
        self._form = EpisodeForm(arguments, samples["train"])
        self._specs = {split: self._form.specs(sample) for split, sample in samples.items()}
        super().__init__(
            kind=self._form.kinds,
            input_shape=self._form.input_shapes,
            num_outputs=self._form.num_outputs,
            num_support=1,  # each split has sizes of its own, see size_ranges
            num_query=1,
            dtype=arguments.dtype,
        )
        for split, sample in samples.items():
            require_form(sample, self._specs[split], self._form, split)

    def size_ranges(self, split: str) -> tuple[SizeRange, SizeRange]:
        self.require_split(split)
        support, query = (
            self._size_range(name, examples, padding)
            for name, examples, padding in zip(
                ("support", "query"), self._specs[split], self._form.paddings, strict=True
            )
        )
        return support, query

    def _size_range(self, name: str, examples: Any, padding: Padding) -> SizeRange:
        if padding == "batch":
            raise UsageError(
                f"Expected a largest size of {name} sets, got a family that takes any; pass "
                f"max_{name} to the function that made it."
            )
        if padding is not None:
            return SizeRange(1, padding)
        size = tf.nest.flatten(examples)[0].shape[0]
        return SizeRange(size, size)

    def _batches(self, tasks: tf.data.Dataset, batch_size: int) -> tf.data.Dataset:
        specs = tasks.element_spec
        shapes = self._form.padded_shapes(specs)
        wanted = zip(tf.nest.flatten(specs), shapes, strict=True)
        if all(shape.is_fully_defined() and spec.shape == shape for spec, shape in wanted):
            return super()._batches(tasks, batch_size)
        return padded_batches(tasks, batch_size, shapes, self._form.padding_values(specs))


class FunctionTasks(CustomTasks):
    """Episodes of a function `function(split, rng)`; see `from_function`."""

    def __init__(
        self, function: EpisodeFunction, splits: tuple[str, ...], arguments: FormArguments
    ) -> None:
        self._function = function
        varies = arguments.input_shape is not None
        self._pad_value = arguments.pad_value if varies else None
        samples = {split: self._sample(split) for split in splits}
        super().__init__(samples, arguments)
        for split, sample in samples.items():
            self._checked(sample, split)

    def _stream(self, split: str, seed: int, first: int) -> tf.data.Dataset:
        def checked_episodes() -> Iterator[Episode]:
            number = first
            with late_errors.kept():
                try:
                    for episode in self._raw_episodes(split, seed, first):
                        yield self._checked(episode, split)
                        number += 1
                except UsageError as error:
                    raise UsageError(f"{error} (It is episode {number} of the split.)") from error

        return tf.data.Dataset.from_generator(checked_episodes, output_signature=self._specs[split])

    def _sample(self, split: str) -> Episode:
        """Returns the first episode of a split, which tells the form of all."""
        if split not in SPLITS:
            raise UsageError(f"Expected splits of {SPLITS}, got {split!r}; rename it.")
        for episode in self._raw_episodes(split, seed=0, first=0):
            require_examples(episode, split)
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
            yield as_arrays(as_episode(episode, split), self._pad_value, split)

    def _checked(self, episode: Episode, split: str) -> Episode:
        specs = self._specs[split]
        require_form(episode, specs, self._form, split)
        require_labels(episode, self._form, split)
        completed = _completed(episode, specs, lambda array: np.ones(len(array)))
        return with_types(completed, specs, split)


class DatasetTasks(CustomTasks):
    """Episodes of a data set for each split; see `from_dataset`."""

    def __init__(
        self,
        datasets: dict[str, tf.data.Dataset],
        samples: dict[str, Episode],
        arguments: FormArguments,
    ) -> None:
        self._datasets = datasets
        super().__init__(samples, arguments)

    def _stream(self, split: str, seed: int, first: int) -> tf.data.Dataset:
        dataset = self._datasets[split]
        size = int(dataset.cardinality())
        # Skipping whole passes over a repeated data set would change nothing and take long.
        start = first % size if size > 0 else first

        @tf.autograph.experimental.do_not_convert
        def checked(*episode: Any) -> Episode:
            return self._checked(episode, split)

        return dataset.repeat().skip(start).map(checked)

    def _checked(self, episode: Any, split: str) -> Episode:
        specs, form = self._specs[split], self._form
        (support_x, *support), (query_x, *query) = episode
        support_x, query_x = (
            tf.nest.map_structure(_as_dense, x, form.pad_values) for x in (support_x, query_x)
        )
        episode = (support_x, *support), (query_x, *query)
        require_sizes(episode, form, split)
        require_labels_in_graph(episode, form, split)
        return tf.nest.map_structure(
            lambda spec, tensor: tf.ensure_shape(tf.cast(tensor, spec.dtype), spec.shape),
            specs,
            _completed(episode, specs, lambda tensor: tf.ones(tf.shape(tensor)[:1])),
        )


def _completed(episode: Episode, specs: Episode, ones: Callable[[Any], Any]) -> Episode:
    """Returns an episode with weights of 1 in sets without weights, if `specs` have weights."""
    support, query = (
        (*examples, ones(tf.nest.flatten(examples)[0])) if len(examples) < len(of_set) else examples
        for examples, of_set in zip(episode, specs, strict=True)
    )
    return support, query


def _as_dense(array: tf.Tensor | tf.RaggedTensor, pad_value: float) -> tf.Tensor:
    if not isinstance(array, tf.RaggedTensor):
        return array
    return array.to_tensor(tf.cast(pad_value, array.dtype))
