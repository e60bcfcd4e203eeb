"""Turns what Keras's `compile(loss=...)` takes into a function with a scalar value."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias, TypeVar

import keras
import tensorflow as tf

# Keras exports neither of these: the mask that layers and losses find at a tensor, and the loss
# object that `Model.compile` uses for a name or a function, which aligns ranks, casts dtypes and
# reduces.
from keras.src.backend import get_keras_mask, set_keras_mask
from keras.src.trainers.compile_utils import get_loss

from amaml_tf.aliases import LossFunction, Tensors
from amaml_tf.errors import UsageError
from amaml_tf.functional.example_pieces import Whole
from amaml_tf.functional.example_weights import filled

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

    Examples may have weights, with Keras's reductions. An example of weight 0 counts nowhere: a
    mean over the examples is a mean over the others. (Keras divides by the number of all examples,
    whatever their weights, but leaves out masked ones. Here, weight 0 is a mask.) A loss that
    compares examples, or that reduces over them by itself, cannot leave an example out: it is NaN
    if a weight is 0. `Dice` and `Tversky` can.

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

    def __call__(
        self,
        y_true: Tensors,
        y_pred: Tensors,
        weight: Tensors | None = None,
        whole: Whole | None = None,
    ) -> tf.Tensor:
        """Returns the loss, a scalar.

        Args:
            y_true: targets, a tensor for each output.
            y_pred: outputs.
            weight: weights of the n examples, `[n]` (or `[n, steps]` for outputs with steps), one
                for all outputs or one for each. None: 1.
            whole: the set of examples of which these are a piece; the losses of all pieces add up
                to that of the set. None: these are the set.
        """
        names = self._names_of(y_pred)
        if len(names) > 1 and not isinstance(y_true, (list, tuple, dict)):
            raise UsageError(
                f"Expected targets for each of the {len(names)} outputs of the model, got one "
                "tensor; give a list of them, or a dict by the outputs' names."
            )
        of_whole = None if whole is None else whole.weight
        parts = (self._losses, self.given_weights, y_true, y_pred, weight, of_whole)
        values = [
            _value(loss, targets, outputs, of_examples)
            * (1.0 if factor is None else factor)
            * (1.0 if whole is None else _share(loss, targets, outputs, of_examples, whole, of_all))
            for loss, factor, targets, outputs, of_examples, of_all in zip(
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
        # `copy.copy` would go through the configuration, in which a function has no globals.
        given, found = found, object.__new__(type(found))
        found.__dict__.update(given.__dict__)
        # Keras has no public way to change the dtype of a loss.
        found._dtype_policy = keras.DTypePolicy(dtype.name)
        found._dtype = dtype.name
    return found


def _value(
    loss: keras.losses.Loss, y_true: tf.Tensor, y_pred: tf.Tensor, weight: tf.Tensor | None
) -> tf.Tensor:
    """Returns the loss of one output, a scalar."""
    value = loss(y_true, y_pred) if weight is None else _weighted(loss, y_true, y_pred, weight)
    if value.shape.rank not in (0, None):
        raise UsageError(
            f"Expected a loss with one value for all examples, got values of shape {value.shape} "
            f"of {loss.name!r}; give it the reduction 'sum_over_batch_size' or 'sum'."
        )
    return value


def _share(
    loss: keras.losses.Loss,
    y_true: tf.Tensor,
    y_pred: tf.Tensor,
    weight: tf.Tensor | None,
    whole: Whole,
    weight_of_all: tf.Tensor | None,
) -> tf.Tensor | float:
    """Returns by what the loss of a piece is multiplied, so that pieces add up to the whole.

    Raises:
        UsageError: they do not add up.
    """
    if _reduces_by_itself(loss, y_true, y_pred) or get_keras_mask(y_pred) is not None:
        raise UsageError(
            f"Expected a loss that is a sum or a mean over examples, because examples_per_step is "
            f"given, got {loss.name!r}, which masks steps or reduces by itself; give a function "
            "that returns a value for each example, or leave examples_per_step out."
        )
    if loss.reduction == "sum":
        return 1.0
    if weight is None or weight_of_all is None:
        return whole.share(y_pred)
    if loss.reduction != "mean_with_sample_weight":
        weight, weight_of_all = weight != 0, weight_of_all != 0
    here, there = (tf.reduce_sum(tf.cast(each, y_pred.dtype)) for each in (weight, weight_of_all))
    return tf.math.divide_no_nan(here, there)


def _weighted(
    loss: keras.losses.Loss, y_true: tf.Tensor, y_pred: tf.Tensor, weight: tf.Tensor
) -> tf.Tensor:
    """Returns the loss of weighted examples, in which those of weight 0 do not count."""
    chosen = weight != 0
    mask = get_keras_mask(y_pred)  # of a layer that masks steps
    y_true = filled(y_true, chosen)
    # Keras multiplies losses [n, steps] by weights of the same rank.
    while weight.shape.rank < y_pred.shape.rank - 1:
        weight, chosen = weight[..., tf.newaxis], chosen[..., tf.newaxis]
    y_pred = tf.identity(y_pred)
    over_all = _reduces_by_itself(loss, y_true, y_pred)
    if over_all and _ignores_zeros(loss):
        y_true = tf.where(_aligned(chosen, y_true), y_true, tf.zeros_like(y_true))
        y_pred = tf.where(_aligned(chosen, y_pred), y_pred, tf.zeros_like(y_pred))
    set_keras_mask(y_pred, chosen if mask is None else _aligned(chosen, mask) & mask)
    value = loss(y_true, y_pred, weight)
    if over_all and not _ignores_zeros(loss):
        # A product, so that the gradient is NaN too.
        value *= tf.where(tf.reduce_all(chosen), tf.ones([], value.dtype), float("nan"))
    return value


def _reduces_by_itself(loss: keras.losses.Loss, y_true: tf.Tensor, y_pred: tf.Tensor) -> bool:
    """Returns whether a loss does not give each example a value of its own."""
    if getattr(loss, "fn", None) is keras.losses.circle:
        return True  # compares every example with all others
    # Traced and not used, so that it costs nothing when the program runs.
    values = loss.call(tf.cast(y_true, loss.dtype), tf.cast(y_pred, loss.dtype))
    return y_pred.shape.rank > 0 and values.shape.rank == 0


def _ignores_zeros(loss: keras.losses.Loss) -> bool:
    """Returns whether an example with the target 0 and the output 0 changes nothing."""
    return getattr(loss, "fn", None) in (keras.losses.dice, keras.losses.tversky)


def _aligned(chosen: tf.Tensor, values: tf.Tensor) -> tf.Tensor:
    """Returns `chosen` with as many axes as `values`; new ones, and those left out, are last."""
    while chosen.shape.rank < values.shape.rank:
        chosen = chosen[..., tf.newaxis]
    while chosen.shape.rank > values.shape.rank:
        chosen = tf.squeeze(chosen, axis=-1)
    return chosen


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
