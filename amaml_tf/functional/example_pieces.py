"""Large support sets in pieces: derivatives of their loss, added up over pieces of the examples."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import keras
import numpy as np
import tensorflow as tf

from amaml_tf.aliases import Tensors, Vectors
from amaml_tf.errors import UsageError
from amaml_tf.functional.parameters import is_noise


class Whole(NamedTuple):
    """What a piece of a set of examples must know of the whole set.

    Attributes:
        num_examples: in the whole set.
        weight: of all examples, as the loss takes it; None: 1.
    """

    num_examples: int | tf.Tensor
    weight: Tensors | None

    def share(self, piece: Tensors) -> tf.Tensor:
        """Returns the fraction of the examples that `piece`, arrays `[n, ...]`, has."""
        first = tf.nest.flatten(piece)[0]
        dtype = first.dtype if first.dtype.is_floating else tf.float64
        return tf.cast(tf.shape(first)[0], dtype) / tf.cast(self.num_examples, dtype)


def check(size: int | None, model: keras.Model, has_batch_statistics: bool) -> None:
    """Raises UsageError unless the loss of `model` can be added up over pieces of `size` examples.

    Args:
        size: examples of a piece; None: all.
        model: the model.
        has_batch_statistics: whether batch normalization uses the statistics of the batch.
    """
    if size is None:
        return
    if size < 1:
        raise UsageError(
            f"Expected examples_per_step to be 1 or more, got {size}; pass a number of examples, "
            "or None for all at once."
        )
    layers = model._flatten_layers()  # noqa: SLF001 - Keras has no public recursive list
    kind = keras.layers.BatchNormalization
    normalized = [each.name for each in layers if isinstance(each, kind) and each.trainable]
    if has_batch_statistics and normalized:
        raise UsageError(
            f"Expected no batch normalization with examples_per_step={size}, got "
            f"{', '.join(normalized)}: the statistics of a piece are not those of the support set. "
            "Pass batch_statistics=False, use another normalization, or leave examples_per_step "
            "out."
        )
    if any(map(is_noise, model.non_trainable_variables)):
        raise UsageError(
            f"Expected no dropout or other noise with examples_per_step={size}, got some in "
            f"{model.name!r}: pieces would repeat each other's noise. Leave one of the two out."
        )


def over_support(
    one: Callable[..., tuple[Vectors, ...]],
    vectors: tuple[Vectors, ...],
    examples: Sequence[Tensors],
    like: tuple[Vectors, ...],
    map_tasks: Callable[[Callable[..., tuple[Vectors, ...]], Any], tuple[Vectors, ...]],
    size: int | None,
) -> tuple[Vectors, ...]:
    """Returns derivatives of the support losses of all tasks, at once or in pieces.

    Args:
        one: takes a task's vectors, some of its examples, and the set of which these are a piece
            (None: they are all).
        vectors: with the task axis first.
        examples: x, y and weight (or none), with the task axis first.
        like: structured and shaped as the results.
        map_tasks: calls a function for each task.
        size: examples of a piece; None: all.
    """
    if size is None:
        return tuple(map_tasks(lambda task: one((*task, None)), (*vectors, tuple(examples))))
    first = tf.nest.flatten(examples)[0]
    number = tf.shape(first)[1] if first.shape[1] is None else first.shape[1]

    def of_piece(piece: Sequence[Tensors]) -> tuple[Vectors, ...]:
        def with_whole(task: tuple[Any, ...]) -> tuple[Vectors, ...]:
            *rest, weight = task
            return one((*rest, Whole(number, weight[0] if weight else None)))

        return map_tasks(with_whole, (*vectors, tuple(piece), tuple(examples[2:])))

    return _added_up(of_piece, examples, size, like)


def _added_up(
    compute: Callable[[Sequence[Tensors]], tuple[Vectors, ...]],
    examples: Sequence[Tensors],
    size: int,
    like: tuple[Vectors, ...],
) -> tuple[Vectors, ...]:
    """Returns the sum of what `compute` gives for pieces of at most `size` examples.

    Args:
        compute: takes a piece of the examples and returns tensors, structured as `like`.
        examples: a structure of arrays with the tasks on their first axis, the examples on their
            second.
        size: examples of a piece, >= 1; the last piece may have fewer.
        like: structured and shaped as the sum.
    """
    first = tf.nest.flatten(examples)[0]
    static = first.shape[1]
    number = tf.shape(first)[1] if static is None else static

    def piece(begin: int | tf.Tensor, count: int | tf.Tensor) -> Sequence[Tensors]:
        # XLA takes no slice with a begin that changes.
        places = begin + tf.range(count)
        return tf.nest.map_structure(lambda each: tf.gather(each, places, axis=1), examples)

    def add(
        totals: tuple[Vectors, ...], begin: int | tf.Tensor, count: int | tf.Tensor
    ) -> tuple[Vectors, ...]:
        return tf.nest.map_structure(tf.add, totals, compute(piece(begin, count)))

    whole_pieces = number // size
    _, totals = tf.while_loop(
        lambda i, _: i < whole_pieces,
        lambda i, totals: (i + 1, add(totals, i * size, size)),
        (tf.constant(0), tf.nest.map_structure(tf.zeros_like, like)),
        parallel_iterations=1,
        maximum_iterations=whole_pieces,
    )
    begin = whole_pieces * size
    if static is not None:
        return add(totals, begin, number - begin) if number > begin else totals
    return tf.cond(number > begin, lambda: add(totals, begin, number - begin), lambda: totals)


def require_separate(
    model: keras.Model, predict: Callable[..., tuple[Tensors, tf.Tensor]], x: Tensors
) -> None:
    """Raises UsageError if the outputs of an example depend on the other examples.

    It tries random examples and parameters, together and apart.

    Args:
        model: the model.
        predict: as `FunctionalModel.predict`.
        x: inputs with the shapes and dtypes of those to come, `[B, n, ...]`.
    """
    rng = np.random.default_rng(0)

    def random(shape: Sequence[int], dtype: tf.DType) -> tf.Tensor:
        floats = dtype.is_floating
        return tf.constant(rng.normal(size=shape) if floats else rng.integers(0, 2, shape), dtype)

    def outputs_of(x: Tensors) -> Tensors:
        return predict(parameters, state, x, False)[0]

    with tf.init_scope():
        parameters = [
            0.5 * random(v.shape, tf.as_dtype(v.dtype)) for v in model.trainable_variables
        ]
        state = [tf.ones(v.shape, v.dtype) for v in model.non_trainable_variables]
        both = tf.nest.map_structure(
            lambda v: random([2, *(2 if n is None else n for n in v.shape[2:])], v.dtype), x
        )
        apart = [
            outputs_of(tf.nest.map_structure(lambda each, i=i: each[i : i + 1], both))
            for i in range(2)
        ]
        joined = tf.nest.map_structure(lambda *each: tf.concat(each, axis=0), *apart)
        pairs = zip(tf.nest.flatten(outputs_of(both)), tf.nest.flatten(joined), strict=True)
        fine = all(np.allclose(a, b, rtol=1e-3, atol=1e-5, equal_nan=True) for a, b in pairs)
    if not fine:
        raise UsageError(
            "Expected a model whose outputs for an example do not depend on the other examples, "
            f"because examples_per_step is given, got {model.name!r}, whose outputs do; leave "
            "examples_per_step out."
        )
