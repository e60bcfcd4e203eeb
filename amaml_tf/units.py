"""Raw units of tasks, such as pixels from 0 to 255, and those that a network learns from."""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, cast

import keras
import numpy as np
import tensorflow as tf

from amaml_tf.errors import UsageError


class Inputs(abc.ABC):
    """How raw inputs become inputs of the network."""

    kind: ClassVar[str]

    @abc.abstractmethod
    def spec(self, shape: Sequence[int | None], dtype: str) -> tf.TensorSpec:
        """Returns the shape and dtype of raw inputs, for those of the network's inputs."""

    @abc.abstractmethod
    def layers(self, dtype: str) -> list[keras.Layer]:
        """Returns layers that compute the network's inputs from raw ones, one after another."""

    @abc.abstractmethod
    def description(self) -> str:
        """Returns a sentence for people who send raw inputs."""


@dataclasses.dataclass(frozen=True)
class Affine(Inputs):
    """(raw - mean) / scale.

    Attributes:
        mean: in raw units.
        scale: in raw units, above 0.
    """

    mean: float
    scale: float
    kind: ClassVar[str] = "affine"

    def spec(self, shape: Sequence[int | None], dtype: str) -> tf.TensorSpec:
        return tf.TensorSpec(shape, dtype)

    def layers(self, dtype: str) -> list[keras.Layer]:
        return [_rescaling(1 / self.scale, -self.mean / self.scale, dtype)]

    def description(self, of: str = "x") -> str:
        seen = f"({of} - {self.mean:g}) / {self.scale:g}"
        return f"numbers in their own units; the network sees {seen}"

    def scaled(self, values: tf.Tensor) -> tf.Tensor:
        """Returns raw targets as the network learns them."""
        return (values - self.mean) / self.scale

    def raw(self, values: tf.Tensor) -> tf.Tensor:
        """Returns predictions of the network in raw units."""
        return values * self.scale + self.mean


@dataclasses.dataclass(frozen=True)
class Pixels(Inputs):
    """Pixels from 0 to 255, which become numbers from 0 to 1.

    Attributes:
        inverted: whether 0 becomes 1 and 255 becomes 0, for dark ink on light paper.
    """

    inverted: bool = False
    kind: ClassVar[str] = "pixels"

    def spec(self, shape: Sequence[int | None], dtype: str) -> tf.TensorSpec:
        return tf.TensorSpec(shape, tf.uint8)

    def layers(self, dtype: str) -> list[keras.Layer]:
        sign = -1 if self.inverted else 1
        return [_rescaling(sign / 255, float(self.inverted), dtype)]

    def description(self) -> str:
        seen = "(255 - x) / 255" if self.inverted else "x / 255"
        what = "dark ink on light paper" if self.inverted else "as in the image files"
        return f"pixels from 0 to 255, {what}; the network sees {seen}"


@dataclasses.dataclass(frozen=True)
class Lookup(Inputs):
    """Identifiers of items, which become the items' features; unknown items have zeros.

    Attributes:
        identifiers: all integers, or all strings.
        features: `[identifiers, features]`.
    """

    identifiers: tuple[int, ...] | tuple[str, ...]
    features: tuple[tuple[float, ...], ...]
    kind: ClassVar[str] = "lookup"

    def spec(self, shape: Sequence[int | None], dtype: str) -> tf.TensorSpec:
        return tf.TensorSpec(shape[:1], tf.string if self._are_words() else tf.int64)

    def layers(self, dtype: str) -> list[keras.Layer]:
        kind = keras.layers.StringLookup if self._are_words() else keras.layers.IntegerLookup
        table = np.pad(np.array(self.features), ((1, 0), (0, 0)))  # 0 is what is not known
        embedding = keras.layers.Embedding(*table.shape, trainable=False, dtype=dtype)
        embedding.build(())
        embedding.set_weights([table])
        return [kind(vocabulary=list(self.identifiers)), embedding]

    def description(self) -> str:
        example = self.identifiers[0]
        return (
            f"identifiers of items, such as {example!r}; the export knows the features of "
            f"{len(self.identifiers)} items, and takes others for average ones"
        )

    def _are_words(self) -> bool:
        return isinstance(self.identifiers[0], str)


_KINDS: Mapping[str, type[Inputs]] = {each.kind: each for each in (Affine, Pixels, Lookup)}


@dataclasses.dataclass(frozen=True)
class Units:
    """The raw units of a task family.

    Attributes:
        inputs: how raw inputs become inputs of the network.
        targets: how raw targets become what the network learns; None: they are the same, as labels
            are.
    """

    inputs: Inputs
    targets: Affine | None = None

    @classmethod
    def from_values(cls, values: Mapping[str, Any]) -> Units:
        """Returns what `values` writes down."""
        made = _KINDS[values["inputs"]["kind"]]
        given = {name: _tuples(v) for name, v in values["inputs"].items() if name != "kind"}
        targets = values["targets"]
        return cls(made(**given), None if targets is None else Affine(**targets))

    def values(self) -> dict[str, object]:
        """Returns plain values, for JSON."""
        inputs = dataclasses.asdict(cast(Any, self.inputs))
        targets = None if self.targets is None else dataclasses.asdict(self.targets)
        return {"inputs": {"kind": self.inputs.kind, **inputs}, "targets": targets}

    def summary(self) -> dict[str, object]:
        """Returns the same without long tables."""
        values = self.values()
        if isinstance(self.inputs, Lookup):
            values["inputs"] = {"kind": self.inputs.kind, "items": len(self.inputs.identifiers)}
        return values

    def describe(self) -> dict[str, str]:
        """Returns in words what raw inputs and targets are."""
        if self.targets is None:
            return {"inputs": self.inputs.description(), "targets": "as in training"}
        return {"inputs": self.inputs.description(), "targets": self.targets.description("y")}

    def scaled(self, x: np.ndarray, y: np.ndarray | None = None) -> tuple[tf.Tensor, tf.Tensor]:
        """Returns raw examples as a learner takes them: `learner.adapt(units.scaled(x, y))`.

        Args:
            x: raw inputs.
            y: raw targets; None: there are none, and the result has none.
        """
        inputs = tf.convert_to_tensor(x)
        dtype = inputs.dtype.name if inputs.dtype.is_floating else "float32"
        for layer in self.inputs.layers(dtype):
            inputs = layer(inputs)
        if y is None or self.targets is None:
            return inputs, y
        return inputs, self.targets.scaled(tf.cast(y, dtype))

    def in_raw_units(self, model: keras.Model) -> keras.Model:
        """Returns a model of raw inputs and raw outputs, which shares the layers of `model`.

        Raises:
            UsageError: the model has several inputs or outputs.
        """
        if len(model.inputs) != 1 or len(model.outputs) != 1:
            raise UsageError(
                f"Expected a model with one input and one output in raw units, got "
                f"{len(model.inputs)} and {len(model.outputs)}; leave the units out."
            )
        spec = self.inputs.spec(model.inputs[0].shape, model.inputs[0].dtype)
        values = inputs = keras.Input(spec.shape[1:], dtype=spec.dtype.name, name="x")
        for layer in self.inputs.layers(model.inputs[0].dtype):
            values = layer(values)
        outputs = model.call(values)  # layer by layer, so that all of them are the new model's
        if self.targets is not None:
            outputs = _rescaling(self.targets.scale, self.targets.mean, outputs.dtype)(outputs)
        return keras.Model(inputs, outputs, name=model.name)


def _rescaling(scale: float, offset: float, dtype: str) -> keras.Layer:
    return keras.layers.Rescaling(scale, offset, dtype=dtype)


def _tuples(value: object) -> object:
    return tuple(map(_tuples, value)) if isinstance(value, list) else value
