"""Checks of the episodes that a user's function or data set gives."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, cast

import keras
import numpy as np
import tensorflow as tf

from amaml_tf.errors import UsageError
from amaml_tf.tasks.episode_form import Each, Episode, EpisodeForm, Examples, described
from amaml_tf.tasks.yielded import as_dtype, as_numbers

SETS = ("support", "query")
PARTS = ("x", "y", "weight")
REMEDY = "pass a larger one, or give fewer examples."


def as_episode(value: object, split: str) -> Episode:
    """Returns `value` as two tuples (x, y) or (x, y, weight); raises UsageError if it is none."""
    try:
        support, query = (tuple(examples) for examples in cast(Episode, value))
        fine = {len(support), len(query)} <= {2, 3}
    except (TypeError, ValueError):
        fine = False
    if not fine:
        raise UsageError(
            "Expected episodes of one task ((support_x, support_y), (query_x, query_y)) in split "
            f"{split!r}, got {described(value)}; give a pair of pairs of arrays. Each pair may "
            "have weights of the examples as a third array."
        )
    return support, query


def as_arrays(episode: Episode, pad_value: Each, split: str) -> Episode:
    """Returns an episode of NumPy arrays.

    Tuples and dicts are structures, and everything else is an array, as in a `tf.data.Dataset`.
    Inputs of different lengths are padded with `pad_value`, or refused if it is None.
    """
    support, query = (
        tuple(
            _arrays(values, pad_value if part == "x" else None, f"{name}_{part}", split)
            for part, values in zip(PARTS, examples, strict=False)
        )
        for name, examples in zip(SETS, episode, strict=True)
    )
    return support, query


def _arrays(value: Any, pad_value: Any, name: str, split: str) -> Any:
    if isinstance(value, dict):
        of = pad_value if isinstance(pad_value, dict) else dict.fromkeys(value, pad_value)
        return {n: _arrays(each, of.get(n), f"{name}[{n!r}]", split) for n, each in value.items()}
    if isinstance(value, tuple):
        of_all = pad_value if isinstance(pad_value, tuple) else (pad_value,) * len(value)
        pairs = enumerate(zip(value, of_all, strict=True))
        return tuple(_arrays(*pair, f"{name}[{n}]", split) for n, pair in pairs)
    if isinstance(value, tf.RaggedTensor):
        value = value.to_tensor(pad_value)
    elif pad_value is not None and isinstance(value, list):
        try:
            np.asarray(value)
        except ValueError:  # rows of different lengths
            value = tf.ragged.constant(value).to_tensor(pad_value)
    return as_numbers(value, name, split)


def with_types(episode: Episode, specs: Episode, split: str) -> Episode:
    """Returns the arrays of an episode in the types of `specs`, with the same numbers."""

    def typed(values: Any, of_part: Any, name: str) -> Any:
        return tf.nest.map_structure(
            lambda array, spec: as_dtype(array, spec.dtype, name, split), values, of_part
        )

    support, query = (
        tuple(
            typed(values, of_part, f"{name}_{part}")
            for part, values, of_part in zip(PARTS, examples, of_set, strict=False)
        )
        for name, examples, of_set in zip(SETS, episode, specs, strict=True)
    )
    return support, query


def require_form(episode: Episode, specs: Episode, form: EpisodeForm, split: str) -> None:
    """Raises UsageError unless an episode, of arrays or of specs, has the form of its split."""
    for name, examples, of_set, padding in zip(SETS, episode, specs, form.paddings, strict=True):
        for path, spec, array in _leaves(name, examples, of_set, split):
            if not spec.shape.is_compatible_with(array.shape):
                raise UsageError(
                    f"Expected {path} of shape {tuple(spec.shape)} in split {split!r} of a "
                    f"{_kind(form)} family, got {tuple(array.shape)}; give all episodes the shapes "
                    "of the first, regression targets as [examples, outputs], labels as "
                    "[examples], or let sets of other sizes be padded with max_support and "
                    "max_query."
                )
        sizes = {array.shape[0] for array in tf.nest.flatten(examples)} - {None}
        if len(sizes) > 1 or 0 in sizes:
            raise UsageError(
                f"Expected as many targets as inputs, 1 or more, in the {name} set of split "
                f"{split!r}, got {described(examples)}; give every example an input and a target."
            )
        if isinstance(padding, int) and sizes and max(sizes) > padding:
            raise UsageError(f"{too_large(name, split, padding)}, got {max(sizes)}; {REMEDY}")


def too_large(name: str, split: str, padding: int) -> str:
    """Returns the beginning of a sentence about a set of more than `padding` examples."""
    return f"Expected at most max_{name}={padding} examples in the {name} set of split {split!r}"


def require_labels(episode: Episode, form: EpisodeForm, split: str) -> None:
    """Raises UsageError unless the labels of all classifications are numbers of classes.

    Examples of weight 0 may have any label.
    """
    for labels, num_outputs in _labels(episode, form):
        found = labels.numpy()
        if found.size and (found.min() < 0 or found.max() >= num_outputs):
            raise UsageError(
                f"Expected labels {_range(num_outputs, split)}, got {found.min()} to "
                f"{found.max()}; {_NUMBERING}"
            )


def require_labels_in_graph(episode: Episode, form: EpisodeForm, split: str) -> None:
    """Raises InvalidArgumentError, when the program runs, unless the labels are right."""
    for labels, num_outputs in _labels(episode, form):
        number = tf.cast(labels, tf.int64)
        fine = (number >= 0) & (number < num_outputs) & (tf.cast(number, labels.dtype) == labels)
        tf.debugging.assert_equal(
            tf.reduce_all(fine),
            True,
            f"Expected labels {_range(num_outputs, split)}, got others; {_NUMBERING}",
        )


_NUMBERING = "number the classes of each task from 0, or pass a larger num_outputs."


def _range(num_outputs: int, split: str) -> str:
    return f"from 0 to {num_outputs - 1} in the {split} split"


def _labels(episode: Episode, form: EpisodeForm) -> Iterator[tuple[tf.Tensor, int]]:
    """Yields the labels of each classification that count, and the number of its classes."""
    kinds, sizes = tf.nest.flatten(form.kinds), tf.nest.flatten(form.num_outputs)
    for _, y, *weight in episode:
        for labels, kind, size in zip(tf.nest.flatten(y), kinds, sizes, strict=True):
            if kind == "classification":
                labels = tf.convert_to_tensor(labels)
                chosen = tf.convert_to_tensor(weight[0]) != 0 if weight else None
                yield (labels if chosen is None else tf.boolean_mask(labels, chosen)), size


def require_sizes(episode: Episode, form: EpisodeForm, split: str) -> None:
    """Raises InvalidArgumentError, when the program runs, unless the sizes are right."""
    for name, examples, padding in zip(SETS, episode, form.paddings, strict=True):
        sizes = [tf.shape(array)[0] for array in tf.nest.flatten(examples)]
        for size in sizes:
            tf.debugging.assert_equal(
                size,
                sizes[0],
                f"Expected as many targets as inputs in the {name} set of split {split!r}, got "
                "different numbers; give every example an input and a target.",
            )
        tf.debugging.assert_positive(
            sizes[0],
            f"Expected at least one example in the {name} set of split {split!r}, got none; leave "
            "such tasks out.",
        )
        if isinstance(padding, int):
            tf.debugging.assert_less_equal(
                sizes[0], padding, f"{too_large(name, split, padding)}, got more; {REMEDY}"
            )


def require_examples(episode: Episode, split: str) -> None:
    """Raises UsageError unless all arrays of an episode have an axis of examples."""
    for array in tf.nest.flatten(episode):
        if array.shape.rank == 0 if isinstance(array.shape, tf.TensorShape) else not array.shape:
            raise UsageError(
                f"Expected arrays of examples in split {split!r}, got shape (); put an axis of "
                "examples first."
            )
        if isinstance(array.shape, tf.TensorShape) and array.shape.rank is None:
            raise UsageError(
                f"Expected arrays with a known number of axes in split {split!r}, got one without; "
                "in a tf.data.Dataset set the shapes with tf.ensure_shape."
            )


def _leaves(
    name: str, examples: Examples, specs: Examples, split: str
) -> Iterator[tuple[str, Any, Any]]:
    """Yields the name, the spec and the array of each array of a set."""
    if len(examples) > len(specs):
        raise UsageError(
            f"Expected the {name} sets of split {split!r} without weights, as in the first "
            "episode, got one with weights; give all episodes weights."
        )
    for part, array, spec in zip(PARTS, examples, specs, strict=False):
        try:
            tf.nest.assert_same_structure(spec, array)
        except (TypeError, ValueError) as error:
            raise UsageError(
                f"Expected {name}_{part} in the structure {described(spec)} in split {split!r}, "
                f"got {described(array)}; give all episodes the structure of the first."
            ) from error
        arrays = tf.nest.flatten(array)
        for (path, leaf), value in zip(keras.tree.flatten_with_path(spec), arrays, strict=True):
            yield f"{name}_{part}" + "".join(f"[{key!r}]" for key in path), leaf, value


def _kind(form: EpisodeForm) -> str:
    return " and ".join(sorted(set(tf.nest.flatten(form.kinds))))
