"""A function of one task, for each task of a batch."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from typing import Any, TypeVar

import tensorflow as tf

from amaml_tf.aliases import Tensors, Vectors
from amaml_tf.functional.execution import require_compilable

T = TypeVar("T")

_MOST_SIDE_BY_SIDE = 8


def most_side_by_side() -> int:
    """Returns how many tasks are computed at a time, if each is computed by itself.

    On a CPU, more tasks than cores would need more memory and no less time.
    """
    if tf.config.list_physical_devices("GPU"):
        return _MOST_SIDE_BY_SIDE
    return min(max(os.cpu_count() or 1, 2), _MOST_SIDE_BY_SIDE)


def map_tasks(
    one: Callable[[tuple[Tensors, ...]], T],
    tasks: tuple[Tensors, ...],
    *,
    vectorize: bool,
    jit_compile: bool = False,
) -> T:
    """Returns the results of `one` for every task, the task axis first.

    Args:
        one: a function of one task.
        tasks: tensors with the task axis first.
        vectorize: whether to make one program of all tasks; otherwise they are computed in
            parallel, each by itself.
        jit_compile: whether XLA compiles `one`, if tasks are computed each by itself.
    """
    task = tf.nest.map_structure(lambda v: tf.TensorSpec(v.shape[1:], v.dtype), tasks)
    # Traced once, for the types of its results and for the loop.
    traced = tf.function(one, autograph=False, jit_compile=jit_compile)
    if jit_compile:
        require_compilable(traced.get_concrete_function(task))
    if tf.nest.flatten(tasks)[0].shape[0] == 1:  # LiteRT has no map_fn
        call = traced if jit_compile else one
        result = call(tf.nest.map_structure(lambda v: tf.squeeze(v, 0), tasks))
        return tf.nest.map_structure(lambda v: tf.expand_dims(v, 0), result)
    if vectorize:
        return tf.vectorized_map(one, tasks, warn=False)
    results = traced.get_concrete_function(task).structured_outputs
    signature = tf.nest.map_structure(lambda v: tf.TensorSpec(v.shape, v.dtype), results)
    return tf.map_fn(
        traced, tasks, fn_output_signature=signature, parallel_iterations=most_side_by_side()
    )


def traced_once(
    of_tasks: Callable[..., T], attributes: dict[str, Any] | None = None
) -> Callable[..., T]:
    """Returns a function of vectors and more, whose results have the task axis first.

    Args:
        of_tasks: a function of `vectors` and more, with the task axis first.
        attributes: of the traced function, for TensorFlow.
    """
    traced = tf.function(of_tasks, autograph=False, experimental_attributes=attributes)

    @functools.wraps(of_tasks)
    def call(vectors: Vectors, *others: Any) -> T:
        results = traced(vectors, *others)
        number = tf.nest.flatten(vectors)[0].shape[0]
        # A trace for any number of tasks is used for a known number too, and forgets it.
        for each in tf.nest.flatten(results):
            if each.shape.rank is not None:
                each.set_shape([number, *each.shape[1:]])
        return results

    return call
