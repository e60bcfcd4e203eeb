"""Turns what Keras's `compile(loss=...)` takes into a function with a scalar value."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple, TypeAlias

import keras
import tensorflow as tf

# Keras exports neither of these: the mask that layers and losses find at a tensor, and what
# `Model.compile` makes of names, functions, lists and dicts of losses.
from keras.src.backend import get_keras_mask, set_keras_mask
from keras.src.trainers.compile_utils import CompileLoss

from amaml_tf.aliases import LossFunction, Tensors
from amaml_tf.errors import UsageError
from amaml_tf.functional.example_pieces import Whole
from amaml_tf.functional.example_weights import filled

#: Names for which Keras chooses a loss by the shapes of labels and outputs.
_CHOSEN_BY_LABELS = ("ce", "crossentropy")

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
        self._losses = _Losses(loss, loss_weights, self._names, dtype)

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
        if isinstance(y_pred, (list, tuple)):
            weight = _listed(weight, names)
        value = self._losses(y_true, y_pred, _of_pieces(weight, whole, y_pred, names))
        if value is None:
            raise UsageError("Expected a loss of one output or more, got none; pass one.")
        return value

    def by_output(
        self, y_true: Tensors, y_pred: Tensors, weight: Tensors | None = None
    ) -> dict[str, tf.Tensor]:
        """Returns the loss of each output without its factor, by the names that `Model.fit` logs.

        Args:
            y_true: targets, a tensor for each output.
            y_pred: outputs. Of one output or one loss alone, nothing is returned, as in Keras.
            weight: as in a call.
        """
        with self._losses.noting() as found:
            self(y_true, y_pred, weight)
        return found

    def _names_of(self, y_pred: Tensors) -> Sequence[str | int]:
        """Returns the names of the outputs, or their places where they have no names."""
        if isinstance(y_pred, dict):
            return self._names if set(self._names) == set(y_pred) else list(y_pred)
        count = len(y_pred) if isinstance(y_pred, (list, tuple)) else 1
        return self._names if len(self._names) == count else range(count)


class _Losses(CompileLoss):
    """What `Model.compile` makes of losses and outputs, with the values of `_value`."""

    _flat_losses: list[Any] | None

    def __init__(
        self,
        loss: Loss,
        loss_weights: LossWeights | None,
        output_names: Sequence[str],
        dtype: tf.DType,
    ) -> None:
        super().__init__(loss, loss_weights, output_names=list(output_names) or None)
        for each in keras.tree.flatten(loss):
            if isinstance(each, str) and each.lower() not in _CHOSEN_BY_LABELS:
                keras.losses.get(each)  # raises an error unless Keras knows it
        self._wanted = dtype
        self._noted: dict[str, tf.Tensor] | None = None
        _compute_in(self, dtype)

    @property
    def metrics(self) -> list[_Noted | None]:
        # Keras would keep the mean of each loss.
        losses = self._flat_losses or ()
        if self._noted is None or len(losses) < 2:
            return [None] * len(losses)
        return [_Noted(self._noted, f"{each.name}_loss") for each in losses]

    @contextlib.contextmanager
    def noting(self) -> Iterator[dict[str, tf.Tensor]]:
        """In this context, a call notes the values of the losses, if there are several."""
        found: dict[str, tf.Tensor] = {}
        self._noted = found
        try:
            yield found
        finally:
            self._noted = None

    def build(self, y_true: Tensors, y_pred: Tensors) -> None:
        super().build(y_true, y_pred)
        self._flat_losses = [
            each._replace(loss=functools.partial(_value, _of_dtype(each.loss, self._wanted)))
            for each in self._flat_losses or ()
        ]


class _Noted(NamedTuple):
    """Takes the place of the metric that Keras updates by the value of a loss."""

    values: dict[str, tf.Tensor]
    name: str

    def update_state(self, value: tf.Tensor, sample_weight: int | None = None) -> None:
        """Notes the value."""
        del sample_weight
        self.values[self.name] = value


def _of_dtype(loss: keras.losses.Loss, dtype: tf.DType) -> keras.losses.Loss:
    """Returns the loss, computed in `dtype` if that is wider than its own."""
    if tf.as_dtype(loss.dtype).size >= dtype.size:
        return loss
    # `copy.copy` would go through the configuration, in which a function has no globals.
    found = object.__new__(type(loss))
    found.__dict__.update(loss.__dict__)
    _compute_in(found, dtype)
    return found


def _compute_in(loss: keras.losses.Loss, dtype: tf.DType) -> None:
    # Keras has no public way to change the dtype of a loss.
    loss._dtype_policy = keras.DTypePolicy(dtype.name)  # noqa: SLF001
    loss._dtype = dtype.name  # noqa: SLF001


@dataclasses.dataclass(frozen=True)
class _OfPiece:
    """The weights of a piece of the examples, and what it must know of the whole set."""

    weight: tf.Tensor | None
    whole: Whole
    weight_of_all: tf.Tensor | None


def _of_pieces(
    weight: Tensors | None, whole: Whole | None, y_pred: Tensors, names: Sequence[str | int]
) -> Any:
    """Returns the weights as `_value` takes them: a structure of `_OfPiece` if there are pieces."""
    if whole is None:
        return weight
    if weight is None:
        return _OfPiece(None, whole, None)
    of_all = whole.weight
    if isinstance(y_pred, (list, tuple)):
        of_all = _listed(of_all, names)
    return keras.tree.map_structure(lambda w, v: _OfPiece(w, whole, v), weight, of_all)


def _listed(weight: Tensors | None, names: Sequence[str | int]) -> Tensors | None:
    """Returns weights by the outputs' names in the order of the outputs."""
    return [weight.get(str(name)) for name in names] if isinstance(weight, dict) else weight


def _value(
    loss: keras.losses.Loss,
    y_true: tf.Tensor,
    y_pred: tf.Tensor,
    weight: tf.Tensor | _OfPiece | None = None,
) -> tf.Tensor:
    """Returns the loss of one output, a scalar."""
    if isinstance(weight, _OfPiece):
        share = _share(loss, y_true, y_pred, weight.weight, weight.whole, weight.weight_of_all)
        return _value(loss, y_true, y_pred, weight.weight) * share
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
