"""Turns what Keras's `compile(loss=...)` takes into a function with a scalar value."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias, TypeVar

import keras
import tensorflow as tf

# Gives the loss object that `Model.compile` uses for a name or a function: it aligns ranks, casts
# dtypes and reduces. Keras exports it under no public name.
from keras.src.trainers.compile_utils import get_loss

from amaml_tf.aliases import LossFunction, Tensors
from amaml_tf.errors import UsageError

T = TypeVar("T")

#: A Keras loss, its name, or a function of (y_true, y_pred).
OneLoss: TypeAlias = keras.losses.Loss | str | LossFunction
#: What `compile(loss=...)` takes: a Keras loss, its name, a function of (y_true, y_pred), or, for
#: several outputs, a list or a dict of these.
Loss: TypeAlias = (
    "keras.losses.Loss | str | LossFunction | Sequence[Loss | None] | Mapping[str, Loss | None]"
)
#: What `compile(loss_weights=...)` takes.
LossWeights: TypeAlias = float | Sequence[float] | Mapping[str, float]


class TaskLoss:
    """The loss of one task: a scalar function of targets and outputs, as `Model.compile` has it.

    Args:
        loss: as for `compile`. One loss for several outputs is the loss of each of them.
        dtype: the loss is computed in this dtype if it is wider than its own.
        loss_weights: a factor for each loss; None: 1.
        output_names: the names of the model's outputs, in their order, where they have names.

    Raises:
        UsageError: if there is no loss, or Keras does not know it.
    """

    def __init__(
        self,
        loss: Loss | None,
        dtype: tf.DType,
        loss_weights: LossWeights | None = None,
        output_names: Sequence[str] = (),
    ) -> None:
        if loss is None or (isinstance(loss, (list, tuple, dict)) and not loss):
            raise UsageError(
                f"Expected a loss (a keras.losses.Loss, its name, or a function), got {loss!r}; "
                "pass compile(loss=...)."
            )
        self.given = loss
        self.given_weights = loss_weights
        self._names = tuple(output_names)
        self._losses = _map(lambda each: _of_keras(each, dtype), loss)

    def __call__(self, y_true: Tensors, y_pred: Tensors) -> tf.Tensor:
        """Returns the loss, a scalar."""
        names = self._names_of(y_pred)
        if len(names) > 1 and not isinstance(y_true, (list, tuple, dict)):
            raise UsageError(
                f"Expected targets for each of the {len(names)} outputs of the model, got one "
                "tensor; give a list of them, or a dict by the outputs' names."
            )
        parts = (self._losses, self.given_weights, y_true, y_pred)
        values = [
            loss(targets, outputs) * (1.0 if weight is None else weight)
            for loss, weight, targets, outputs in zip(
                *(_in_order(part, names) for part in parts), strict=True
            )
            if loss is not None
        ]
        return values[0] if len(values) == 1 else tf.add_n(values)

    def _names_of(self, y_pred: Tensors) -> Sequence[str | int]:
        """Returns the names of the outputs, or their places where they have no names."""
        if isinstance(y_pred, dict):
            return self._names if set(self._names) == set(y_pred) else list(y_pred)
        count = len(y_pred) if isinstance(y_pred, (list, tuple)) else 1
        return self._names if len(self._names) == count else range(count)


def _of_keras(loss: object, dtype: tf.DType) -> keras.losses.Loss | None:
    """Returns the Keras loss of a name or a function, computed in `dtype` if that is wider."""
    if loss is None:
        return None
    found = get_loss(loss, None, None)
    if tf.as_dtype(found.dtype).size < dtype.size:
        found = copy.copy(found)
        # Keras has no public way to change the dtype of a loss.
        found._dtype_policy = keras.DTypePolicy(dtype.name)  # noqa: SLF001
        found._dtype = dtype.name  # noqa: SLF001
    return found


def _map(function: Callable[[object], T], spec: object) -> T | list[T] | dict[str, T]:
    if isinstance(spec, dict):
        return {name: function(each) for name, each in spec.items()}
    if isinstance(spec, (list, tuple)):
        return [function(each) for each in spec]
    return function(spec)


def _in_order(values: object, names: Sequence[str | int]) -> list[Any]:
    """Returns a value for each output: by name, by place, or the same for all.

    Raises:
        UsageError: the names or the number of values are not those of the outputs.
    """
    if isinstance(values, dict):
        unknown = [name for name in values if name not in names]
        if unknown:
            raise UsageError(
                f"Expected the names of outputs ({', '.join(map(str, names))}), got "
                f"{', '.join(map(str, unknown))}; use the model's output names."
            )
        return [values.get(name) for name in names]
    if not isinstance(values, (list, tuple)):
        return [values] * len(names)
    if len(values) != len(names):
        raise UsageError(
            f"Expected {len(names)} values, one for each output of the model, got {len(values)}; "
            "give one for each."
        )
    return list(values)
