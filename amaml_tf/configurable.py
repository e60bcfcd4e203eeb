"""Objects that Keras saves and loads by the arguments of their constructors."""

from __future__ import annotations

import functools
import inspect
import types
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import keras
import numpy as np

from amaml_tf.errors import UsageError

C = TypeVar("C", bound="Configurable")

_PACKAGE = __name__.partition(".")[0]
#: Where the losses and metrics of Keras keep the function that they wrap.
_WRAPPED = ("fn", "_fn")


class Configurable:
    """Gives subclasses `get_config` and `from_config`, and registers them with Keras.

    A subclass needs no code for it. Its configuration has a value for every argument of its
    constructor: the attribute with the name of the argument if there is one, otherwise what the
    constructor was called with. A class outside of this library is registered under its module.
    A class whose arguments cannot be serialized overrides both methods.
    """

    def __init_subclass__(cls, **options: object) -> None:
        super().__init_subclass__(**options)
        if "__init__" in vars(cls):
            cls.__init__ = _recording(cls.__init__)  # type: ignore[method-assign]
        module = cls.__module__
        package = _PACKAGE if module.startswith(f"{_PACKAGE}.") else module
        keras.saving.register_keras_serializable(package)(cls)

    def get_config(self) -> dict[str, object]:
        """Returns the arguments that make this object again, serialized as Keras does it.

        Raises:
            UsageError: if an argument cannot be serialized, or if the object was changed since and
                its arguments do not make it again.
        """
        arguments = self.constructor_arguments()
        if difference := self._difference_if_made_of(arguments):
            raise UsageError(
                f"Expected the arguments of {type(self).__name__} to make it again, but "
                f"{difference}; make a new object instead of changing an attribute, or give the "
                "class get_config and from_config."
            )
        owner = type(self).__name__
        return {name: serialized(f"{name} of {owner}", v) for name, v in arguments.items()}

    @classmethod
    def from_config(cls: type[C], config: Mapping[str, object]) -> C:
        """Makes the object whose `get_config` returned `config`."""
        return cls(**keras.saving.deserialize_keras_object(dict(config)))

    def _difference_if_made_of(self, arguments: dict[str, Any]) -> str:
        """Returns how an object made of `arguments` differs from this one, "" if it does not."""
        try:
            made_again = type(self)(**arguments)
        except (TypeError, ValueError) as error:
            return f"they are refused: {str(error).rstrip('.')}"
        for name in {**arguments, **vars(self)}:
            mine, its = (vars(each).get(name) for each in (self, made_again))
            if (name in arguments or isinstance(mine, Configurable)) and not _equal(mine, its):
                return f"{name} would be {its!r} in place of {mine!r}"
        return ""

    def constructor_arguments(self) -> dict[str, object]:
        """Returns the arguments that make this object again, by name."""
        recorded = vars(self).get("_recorded_arguments", {})
        arguments = {}
        for name, parameter in inspect.signature(type(self)).parameters.items():
            if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
                raise UsageError(
                    f"Expected a constructor of {type(self).__name__} that names its arguments, "
                    f"got {parameter}; name them, or give the class get_config and from_config."
                )
            arguments[name] = vars(self).get(name, recorded.get(name))
        return arguments


def serialized(name: str, value: object) -> object:
    """Returns `value` as Keras serializes it.

    Args:
        name: what the value is, in messages.
        value: numbers, names, arrays, functions, objects with `get_config`, nested in lists and
            dicts.

    Raises:
        UsageError: if Keras could not load it again.
    """
    for each in keras.tree.flatten(value):
        if any(map(_has_no_name, (each, *(getattr(each, name, None) for name in _WRAPPED)))):
            raise UsageError(
                f"Expected {name} to be something that can be loaded by its name, got {each!r}; "
                "define it by `def` at the top of a module, with the decorator "
                "@keras.saving.register_keras_serializable()."
            )
    try:
        return keras.saving.serialize_keras_object(value)
    except (TypeError, NotImplementedError) as error:
        raise UsageError(
            f"Expected {name} to be something that Keras can serialize, got {value!r}; use what "
            "this library or Keras has, or give its class get_config and from_config and the "
            "decorator @keras.saving.register_keras_serializable()."
        ) from error


def _recording(constructor: Callable[..., None]) -> Callable[..., None]:
    """Returns the constructor, which records the arguments that the outermost class is given."""
    signature = inspect.signature(constructor)

    @functools.wraps(constructor)
    def record(self: Configurable, *args: object, **kwargs: object) -> None:
        if "_recorded_arguments" not in vars(self):
            try:
                bound = signature.bind(self, *args, **kwargs)
            except TypeError:
                bound = None  # the constructor itself tells what is wrong
            if bound is not None:
                bound.apply_defaults()
                vars(self)["_recorded_arguments"] = bound.arguments
        constructor(self, *args, **kwargs)

    return record


def _has_no_name(value: object) -> bool:
    """Returns whether `value` is a function that Keras cannot find by its name."""
    if isinstance(value, types.FunctionType):
        return value.__name__ == "<lambda>"
    return callable(value) and not isinstance(value, type) and not hasattr(value, "get_config")


def _equal(one: object, other: object) -> bool:
    # Keras must not serialize `other` to compare it: it takes a later object at its address for it.
    leaves, its_leaves = keras.tree.flatten(one), keras.tree.flatten(other)
    return len(leaves) == len(its_leaves) and all(map(_equal_leaves, leaves, its_leaves))


def _equal_leaves(one: object, other: object) -> bool:
    if isinstance(one, Configurable) and isinstance(other, Configurable):
        return type(one) is type(other) and _equal(
            one.constructor_arguments(), other.constructor_arguments()
        )
    return one is other or bool(np.array_equal(np.asarray(one), np.asarray(other)))
