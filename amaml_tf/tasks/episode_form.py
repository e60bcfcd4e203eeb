"""The form of a user's episodes: the structure, shapes and types that all of a family have."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, Literal, TypeAlias

import keras
import numpy as np
import tensorflow as tf

from amaml_tf.errors import UsageError
from amaml_tf.tasks.sizes import require_positive

Array: TypeAlias = np.ndarray | tf.Tensor
#: An array, or arrays nested in tuples and dicts.
Arrays: TypeAlias = "Array | tuple[Arrays, ...] | dict[str, Arrays]"
#: (x, y) or (x, y, weight) of a support or query set.
Examples: TypeAlias = tuple[Any, ...]
#: The support set and the query set of one task; of arrays, or of their `tf.TensorSpec`s.
Episode: TypeAlias = tuple[Examples, Examples]
#: How many examples a set is padded to: a number, or "batch", as many as the largest set of the
#: batch has, rounded up to a power of two. None: all sets of a split have the same size.
Padding: TypeAlias = int | Literal["batch"] | None
#: One value, or values in the structure of several inputs or outputs.
Each: TypeAlias = Any


@dataclasses.dataclass(frozen=True, kw_only=True)
class FormArguments:
    """What a user says of the episodes, as the arguments of `from_function`."""

    kind: Each
    num_outputs: Each
    dtype: str
    input_shape: Each
    input_dtype: Each
    max_support: Padding
    max_query: Padding
    pad_value: Each

    def __post_init__(self) -> None:
        for name in ("max_support", "max_query"):
            value = getattr(self, name)
            if isinstance(value, int):
                require_positive(name, value)
            elif value not in ("batch", None):
                raise UsageError(
                    f"Expected {name} to be a number of examples, 'batch' or None, got {value!r}; "
                    "pass one of them."
                )


class EpisodeForm:
    """What all episodes of a family have in common.

    Args:
        arguments: what the user says.
        sample: an episode of the split "train", of arrays or of `tf.TensorSpec`s.

    Raises:
        UsageError: the two do not fit together.
    """

    def __init__(self, arguments: FormArguments, sample: Episode) -> None:
        (x, y, *_), _ = sample
        self.dtype = arguments.dtype
        self.paddings = arguments.max_support, arguments.max_query
        self.kinds = each("kind", arguments.kind, y)
        if arguments.num_outputs is None:
            self.num_outputs = tf.nest.map_structure(_outputs_of, y, self.kinds)
        else:
            self.num_outputs = each("num_outputs", arguments.num_outputs, y)
        self.pad_values = each("pad_value", arguments.pad_value, x)
        self.input_dtypes = each("input_dtype", arguments.input_dtype or arguments.dtype, x)
        if arguments.input_shape is None:
            self.input_shapes = tf.nest.map_structure(lambda array: tuple(array.shape[1:]), x)
        else:
            self.input_shapes = each("input_shape", arguments.input_shape, x, leaf=tuple)

    def specs(self, sample: Episode) -> Episode:
        """Returns the specs of the episodes of the split that `sample` is from.

        They have weights if a set is padded or has weights. An axis is None where sizes differ.
        """
        sizes = [
            known_size(examples) if padding is None else None
            for padding, examples in zip(self.paddings, sample, strict=True)
        ]
        has_weights = None in sizes or any(len(examples) == 3 for examples in sample)
        support, query = (self._set_specs(size, has_weights) for size in sizes)
        return support, query

    def _set_specs(self, size: int | None, has_weights: bool) -> Examples:
        def targets(kind: str, num_outputs: int) -> tf.TensorSpec:
            if kind == "classification":
                return tf.TensorSpec((size,), tf.int32)
            return tf.TensorSpec((size, num_outputs), self.dtype)

        x = keras.tree.map_structure_up_to(
            self.input_dtypes,
            lambda dtype, shape: tf.TensorSpec((size, *shape), dtype),
            self.input_dtypes,
            self.input_shapes,
        )
        y = tf.nest.map_structure(targets, self.kinds, self.num_outputs)
        return (x, y, tf.TensorSpec((size,), self.dtype)) if has_weights else (x, y)

    def padded_shapes(self, specs: Episode) -> list[tf.TensorShape]:
        """Returns what the arrays of episodes are padded to, flat; None: the batch's largest."""
        return [
            tf.TensorShape(
                [padding if isinstance(padding, int) else spec.shape[0], *spec.shape[1:]]
            )
            for padding, examples in zip(self.paddings, specs, strict=True)
            for spec in tf.nest.flatten(examples)
        ]

    def padding_values(self, specs: Episode) -> list[np.generic]:
        """Returns what the arrays of episodes are padded with, flat: zeros, but for inputs."""
        fillings = tf.nest.flatten(
            [(self.pad_values, tf.nest.map_structure(lambda _: 0, rest)) for _, *rest in specs]
        )
        return [
            spec.dtype.as_numpy_dtype(value)
            for spec, value in zip(tf.nest.flatten(specs), fillings, strict=True)
        ]


def known_size(examples: Examples) -> int | None:
    """Returns the number of examples of a set, of arrays or of specs; None if no spec tells it."""
    sizes = (array.shape[0] for array in tf.nest.flatten(examples))
    return next((size for size in sizes if size is not None), None)


def each(
    name: str, value: Each, structure: Arrays, leaf: Callable[[Any], Any] = lambda value: value
) -> Each:
    """Returns `value` in the structure of several inputs or outputs.

    Args:
        name: of the argument, for messages.
        value: one for all, or values in the same structure.
        structure: arrays, nested.
        leaf: applied to each value.

    Raises:
        UsageError: it has another structure.
    """
    of_all = tf.nest.is_nested(structure) and not isinstance(value, Mapping | tuple)
    try:
        if isinstance(value, Mapping) and not isinstance(structure, Mapping):
            raise TypeError("names for what has none")
        return keras.tree.map_structure_up_to(
            structure,
            leaf,
            tf.nest.map_structure(lambda _: value, structure) if of_all else value,
        )
    except (TypeError, ValueError) as error:
        raise UsageError(
            f"Expected {name} in the structure of the episodes, {described(structure)}, got "
            f"{value!r}; give one value for each array."
        ) from error


def described(value: object) -> str:
    """Returns the structure and the shapes of `value` in one line."""
    if isinstance(value, tuple | list):
        return f"({', '.join(map(described, value))})"
    if isinstance(value, Mapping):
        return f"{{{', '.join(f'{name!r}: {described(each)}' for name, each in value.items())}}}"
    if hasattr(value, "shape"):
        return f"an array of shape {tuple(value.shape)}"
    return f"{value!r:.50}"


def _outputs_of(targets: Array | tf.TensorSpec, kind: str) -> int:
    """Returns the number of outputs of a regression task, from its targets."""
    if kind == "classification":
        raise UsageError(
            "Expected num_outputs, the number of classes of a task, for a classification family, "
            "got None; pass it."
        )
    if len(targets.shape) != 2 or targets.shape[1] is None:
        raise UsageError(
            f"Expected regression targets of shape [examples, outputs], got "
            f"{tuple(targets.shape)}; reshape them, for example with y[:, np.newaxis]."
        )
    return int(targets.shape[1])
