"""Settings of losses and metrics that their own configuration lacks."""

from __future__ import annotations

from typing import Any

import keras


def lacking_in_config(given: keras.losses.Loss | keras.metrics.Metric) -> dict[str, object]:
    """Returns the settings, by name, that are lost in `from_config(get_config())`.

    Some classes of Keras lose settings: `Huber` its `delta`, for example. A class that needs
    `custom_objects` to be made again is taken as complete.
    """
    try:
        made_again = type(given).from_config(given.get_config())
    except (TypeError, ValueError, NotImplementedError):
        return {}
    mine, its = (_settings(each) for each in (given, made_again))
    return {name: value for name, value in mine.items() if its.get(name) != value}


def _settings(given: keras.losses.Loss | keras.metrics.Metric) -> dict[str, object]:
    found: dict[str, Any] = {n: v for n, v in vars(given).items() if not n.startswith("_")}
    # Keras's losses and metrics that wrap a function keep its arguments here.
    found |= getattr(given, "_fn_kwargs", {})
    found["dtype"] = given.dtype
    plain = (bool, int, float, str, type(None))
    leaves = {name: keras.tree.flatten(value) for name, value in found.items()}
    return {
        name: found[name] if len(values) == 1 else values
        for name, values in leaves.items()
        if all(isinstance(each, plain) for each in values)
    }
