"""Task families of your own: from a Python function or from a `tf.data.Dataset`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeAlias

import tensorflow as tf

from amaml_tf.tasks.base import SPLITS, TaskFamily
from amaml_tf.tasks.custom_family import DatasetTasks, EpisodeFunction, FunctionTasks
from amaml_tf.tasks.episode_checks import as_episode, require_examples
from amaml_tf.tasks.episode_form import FormArguments, Padding, known_size

#: One word, or words by the names or the order of several inputs or outputs.
Words: TypeAlias = str | Mapping[str, str] | tuple[str, ...]
#: One number, or numbers by the names or the order of several inputs or outputs.
Numbers: TypeAlias = float | Mapping[str, float] | tuple[float, ...]
#: One shape, or shapes by the names or the order of several inputs.
Shapes: TypeAlias = (
    tuple[int | None, ...]
    | Mapping[str, tuple[int | None, ...]]
    | tuple[tuple[int | None, ...], ...]
)


def from_function(
    function: EpisodeFunction,
    *,
    kind: Words = "regression",
    num_outputs: Numbers | None = None,
    splits: tuple[str, ...] = SPLITS,
    dtype: str = "float32",
    input_shape: Shapes | None = None,
    input_dtype: Words | None = None,
    max_support: Padding = None,
    max_query: Padding = None,
    pad_value: Numbers = 0,
) -> TaskFamily:
    """Returns a task family from a function that makes episodes of one task as NumPy arrays.

        def episode(split, rng):
            slope = rng.uniform(1, 2) if split == "train" else rng.uniform(2, 3)
            x = rng.uniform(-1, 1, size=(20, 1))
            return (x[:10], slope * x[:10]), (x[10:], slope * x[10:])

        family = from_function(episode)

    Inputs and targets may be dicts or tuples of arrays, for models with several inputs or outputs.
    (A list is an array, as in a `tf.data.Dataset`.) An argument about inputs or outputs is then one
    value for all of them, or values in the same structure.

    Args:
        function: `function(split, rng)`, where `rng` is a `numpy.random.Generator` to draw from. It
            either returns one episode `((support_x, support_y), (query_x, query_y))` and is called
            with a new `rng` for every episode, or it is a generator function that yields episodes.
            With a generator function, a resumed run skips the episodes already seen. Inputs are
            [examples, ...]. Targets are [examples, num_outputs] (regression) or integers from 0 to
            num_outputs - 1 of shape [examples] (classification). Either set may have weights of
            shape [examples] as a third array, in all episodes of a split.
        kind: "regression" or "classification".
        num_outputs: how many numbers to predict, or how many classes a task has; None: taken from
            the targets (regression only).
        splits: the splits that `function` has.
        dtype: floating-point type that inputs, regression targets and weights are cast to.
        input_shape: shape of one input, with None where its length differs, such as (None,) for
            tokens; None: the shape of the first one. Inputs of different lengths are padded to the
            longest of the batch, rounded up to a power of two. They may be given as lists or as a
            `tf.RaggedTensor`.
        input_dtype: type that inputs are cast to in place of `dtype`, such as "int32" for tokens.
        max_support: how many examples a support set may have, if the numbers differ: smaller ones
            are padded to this size with examples of weight 0. "batch": any number; sets are padded
            to the largest of the batch, rounded up to a power of two, and a program is compiled for
            each of these sizes. None: all sets of a split have the same size.
        max_query: the same for query sets.
        pad_value: what inputs are padded with. It is 0 for `Embedding(mask_zero=True)`.

    Returns:
        A `TaskFamily`.

    Raises:
        UsageError: the first episode of a split does not have this form.
    """
    arguments = FormArguments(
        kind=kind,
        num_outputs=num_outputs,
        dtype=dtype,
        input_shape=input_shape,
        input_dtype=input_dtype,
        max_support=max_support,
        max_query=max_query,
        pad_value=pad_value,
    )
    return FunctionTasks(function, splits, arguments)


def from_dataset(
    train: tf.data.Dataset,
    *,
    validation: tf.data.Dataset | None = None,
    test: tf.data.Dataset | None = None,
    kind: Words = "regression",
    num_outputs: Numbers | None = None,
    dtype: str = "float32",
    input_dtype: Words | None = None,
    max_support: Padding = None,
    max_query: Padding = None,
    pad_value: Numbers = 0,
) -> TaskFamily:
    """Returns a task family from data sets whose elements are episodes of one task.

    Each data set is repeated and batched, and not changed otherwise. Its order, and whether every
    run has the same order, depend on the data set alone. The `seed` of `episodes` has no effect.

    Args:
        train: elements `((support_x, support_y), (query_x, query_y))`, without a task axis; inputs,
            targets and weights as in `from_function`. Axes of unknown size may differ in size.
            Inputs may be `tf.RaggedTensor`s.
        validation: the same for the split "validation"; None: there is no such split.
        test: the same for the split "test"; None: there is no such split.
        kind: "regression" or "classification".
        num_outputs: how many numbers to predict, or how many classes a task has; None: taken from
            the targets (regression only).
        dtype: floating-point type that inputs, regression targets and weights are cast to.
        input_dtype: type that inputs are cast to in place of `dtype`, such as "int32" for tokens.
        max_support: how many examples a support set may have: smaller ones are padded to this size
            with examples of weight 0. "batch": sets are padded to the largest of the batch, rounded
            up to a power of two. None: "batch" if a data set's support sets are of unknown size.
        max_query: the same for query sets.
        pad_value: what inputs are padded with. It is 0 for `Embedding(mask_zero=True)`.

    Returns:
        A `TaskFamily`.

    Raises:
        UsageError: the elements of a data set do not have this form.
    """
    given = {"train": train, "validation": validation, "test": test}
    datasets = {split: dataset for split, dataset in given.items() if dataset is not None}
    samples = {split: as_episode(each.element_spec, split) for split, each in datasets.items()}
    for split, sample in samples.items():
        require_examples(sample, split)
    is_open = [
        any(known_size(sample[number]) is None for sample in samples.values()) for number in (0, 1)
    ]
    arguments = FormArguments(
        kind=kind,
        num_outputs=num_outputs,
        dtype=dtype,
        input_shape=None,
        input_dtype=input_dtype,
        max_support="batch" if max_support is None and is_open[0] else max_support,
        max_query="batch" if max_query is None and is_open[1] else max_query,
        pad_value=pad_value,
    )
    return DatasetTasks(datasets, samples, arguments)
