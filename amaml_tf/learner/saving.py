"""Saving a learner as a whole, and loading it: what Keras's saving asks a model for."""

from __future__ import annotations

import functools
import inspect
import types
from collections.abc import Callable, Mapping, MutableMapping
from typing import Any, TypeVar

import keras
import numpy as np

from amaml_tf.aliases import PathLike
from amaml_tf.configurable import serialized
from amaml_tf.errors import UsageError
from amaml_tf.functional.parameters import is_noise
from amaml_tf.learner.lossy_configs import lacking_in_config

S = TypeVar("S", bound="SavedLearner")

_SEED = "seed_"
_BUILT = "optimizer_is_built"


class SavedLearner(keras.Model):
    """What `save`, `load_model`, `save_weights` and the callbacks that call them need of a learner.

    The file has the model, the algorithm, the arguments of `compile`, the values of all variables
    and, unlike a file of Keras, the random seeds: training goes on as if it had not stopped.

    Attributes:
        model: the model whose initialization is learned.
        algorithm: how it is learned.
        batch_statistics: as the constructor takes it.
    """

    model: keras.Model

    def __init__(self, name: str | None = None) -> None:
        super().__init__(name=name)
        # In a namespace, because Keras takes apart what stands in lists and dicts of a model.
        self._kept = types.SimpleNamespace(compiled_with={}, unassigned={})

    def get_config(self) -> dict[str, object]:
        """Returns the arguments of the constructor, serialized.

        Raises:
            UsageError: if the model or the algorithm cannot be serialized.
        """
        names = ("model", "algorithm", "batch_statistics")
        owner = type(self).__name__
        parts = {name: serialized(f"{name} of {owner}", getattr(self, name)) for name in names}
        return {"name": self.name, **parts}

    @classmethod
    def from_config(
        cls: type[S],
        config: Mapping[str, object],
        custom_objects: Mapping[str, object] | None = None,
    ) -> S:
        """Makes the learner whose `get_config` returned `config`."""
        return cls(**keras.saving.deserialize_keras_object(dict(config), custom_objects))

    def get_compile_config(self) -> dict[str, object]:
        """Returns the arguments of `compile`, serialized; none if the learner is not compiled.

        Raises:
            UsageError: if one cannot be serialized.
        """
        if not self._kept.compiled_with:
            return {}
        arguments = {**self._kept.compiled_with, "optimizer": self.optimizer}  # as it is by now
        config = {name: serialized(f"{name} of compile", v) for name, v in arguments.items()}
        for each in keras.tree.flatten(arguments):
            if isinstance(each, (keras.losses.Loss, keras.metrics.Metric)):
                _require_all_in_its_config(each)
        return {**config, _BUILT: self.optimizer.built}

    def compile_from_config(self, config: Mapping[str, object]) -> None:
        """Compiles the learner as the one whose `get_compile_config` returned `config`."""
        arguments = keras.saving.deserialize_keras_object(dict(config))
        has_steps = arguments.pop(_BUILT)
        self.compile(**arguments)
        if has_steps:  # otherwise the file has no values for the variables that this makes
            self.optimizer.build(self.trainable_variables)

    def export(self, filepath: PathLike, *args: object, **options: object) -> None:
        """Exports the predictions of the initialization, as `keras.Model.export` does.

        `amaml_tf.save_initialization` exports a model that adapts itself.
        """
        self.model.export(filepath, *args, **options)

    def save_own_variables(self, store: MutableMapping[str, Any]) -> None:
        """Stores the algorithm's own variables, and the random seeds of the model."""
        super().save_own_variables(store)
        for place, seed in enumerate(self._seeds()):
            store[f"{_SEED}{place}"] = seed

    def load_own_variables(self, store: Mapping[str, Any]) -> None:
        """Assigns what `save_own_variables` stored.

        The algorithm's variables exist once the learner is compiled; before, they wait for it.
        """
        values = {name: np.asarray(store[name]) for name in store.keys()}  # noqa: SIM118 - Keras's
        for place, seed in enumerate(self._seeds()):
            value = values.pop(f"{_SEED}{place}", None)
            if value is not None:  # files of Keras have no seeds
                seed.assign(value)
        self._kept.unassigned = values
        if self.compiled:
            self._assign_what_waits()

    def _assign_what_waits(self) -> None:
        values, self._kept.unassigned = self._kept.unassigned, {}
        if values:
            super().load_own_variables(values)

    def _seeds(self) -> list[keras.Variable]:
        return [v for v in self.model.non_trainable_variables if is_noise(v)]


def _require_all_in_its_config(given: keras.losses.Loss | keras.metrics.Metric) -> None:
    """Raises UsageError if the configuration lacks a setting.

    Those of some classes of Keras do: that of `Huber` lacks `delta`.
    """
    lacking = lacking_in_config(given)
    if lacking:
        raise UsageError(
            f"Expected get_config of {type(given).__name__} to have all of its settings, but it "
            f"lacks {lacking}; use a function with a name in its place, or a subclass whose "
            "get_config has them, with the decorator "
            "@keras.saving.register_keras_serializable()."
        )


def remembered(compile_learner: Callable[..., None]) -> Callable[..., None]:
    """Decorates `compile` of a `SavedLearner`: the learner remembers the arguments for its file."""
    signature = inspect.signature(compile_learner)

    @functools.wraps(compile_learner)
    def compile_and_remember(self: SavedLearner, *args: object, **kwargs: object) -> None:
        compile_learner(self, *args, **kwargs)
        bound = signature.bind(self, *args, **kwargs)
        bound.apply_defaults()
        _, *arguments = bound.arguments.items()
        given = dict(arguments)
        self._kept.compiled_with = given.pop("options", {}) | given
        self._assign_what_waits()

    return compile_and_remember
