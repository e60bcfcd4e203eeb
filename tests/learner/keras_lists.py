"""What Keras lists, by introspection, and data to try it on."""

from __future__ import annotations

import inspect
import types
from collections.abc import Callable, Iterator
from typing import Any

import keras
import numpy as np

COUNT = 8


def classes(module: types.ModuleType, base: type) -> dict[str, type]:
    """The subclasses of `base` that a module of Keras has, each by its own name."""
    found = {kind.__name__: kind for _, kind in inspect.getmembers(module, inspect.isclass)}
    return {n: kind for n, kind in found.items() if issubclass(kind, base) and kind is not base}


def names(module: Any) -> list[str]:
    """The names that `compile` takes, one for each function of a module of Keras."""
    found = {}
    for name, function in inspect.getmembers(module, inspect.isfunction):
        try:
            module.get(name)
        except ValueError:
            continue  # a tool, or a function that Keras lists under no name
        found[function] = name
    return list(found.values())


def required(kind: Callable[..., Any], known: dict[str, Any]) -> dict[str, Any]:
    """Values of the arguments that a class needs."""
    parameters = inspect.signature(kind).parameters.values()
    needed = [p for p in parameters if p.default is p.empty and p.kind is p.POSITIONAL_OR_KEYWORD]
    return {p.name: known[p.name] for p in needed}


def examples() -> Iterator[tuple[str, np.ndarray, np.ndarray]]:
    """Yields (what it is, outputs, labels): labels [n], [n, 1] and one-hot, int and float64."""
    rng = np.random.default_rng(0)
    one = rng.uniform(0.05, 0.95, (COUNT, 1)).astype("float32")
    several = rng.uniform(0.05, 1, (COUNT, 3)).astype("float32")
    several /= several.sum(axis=1, keepdims=True)
    binary, classes_of = np.arange(COUNT) % 2, np.arange(COUNT) % 3
    forms = {
        "one output, [n]": (one, binary),
        "one output, [n, 1]": (one, binary[:, None]),
        "classes, [n]": (several, classes_of),
        "classes, [n, 1]": (several, classes_of[:, None]),
        "classes, one-hot": (several, np.eye(3)[classes_of]),
        "steps": (np.stack([several] * 4, axis=1), 1 + np.arange(2 * COUNT).reshape(-1, 2) % 2),
    }
    for what, (outputs, labels) in forms.items():
        for dtype in ("int64", "float64"):
            yield f"{what} {dtype}", outputs, labels.astype(dtype)


def identity(shape: tuple[int, ...], **compiled: Any) -> keras.Model:
    """A model whose outputs are its inputs."""
    inputs = keras.Input(shape)
    model = keras.Model(inputs, keras.layers.Identity(name="out")(inputs))
    model.compile(run_eagerly=True, **compiled)
    return model


def of_keras(model: keras.Model, x: Any, y: Any, weight: Any) -> dict[str, Any] | Exception:
    """What `Model.evaluate` reports of one batch, or the error that it raises."""
    model.reset_metrics()
    try:
        return model.test_on_batch(x, y, weight, return_dict=True)  # a step of `evaluate`
    except Exception as error:  # noqa: BLE001 - Keras and TensorFlow raise any
        return error
