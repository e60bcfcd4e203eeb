"""Flags: one for every setting of an experiment, and --workdir."""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from absl import flags

from amaml_tf import algorithms, models, solvers, tasks
from amaml_tf.errors import UsageError
from amaml_tf.experiment import Experiment
from amaml_tf.experiment.declaration import (
    IN_EVALUATION,
    Declared,
    Setting,
    Value,
    settings_of,
)
from amaml_tf.experiment.factories import arguments_of
from amaml_tf.training.stopping import STOP_WITHIN
from amaml_tf.user_files import user_path

FLAGS = flags.FLAGS

D = TypeVar("D", bound=Declared)

_DEFINE: dict[type, Callable[..., object]] = {
    str: flags.DEFINE_string,
    int: flags.DEFINE_integer,
    float: flags.DEFINE_float,
    bool: flags.DEFINE_bool,
    tuple: flags.DEFINE_list,
}


#: What is known of the settings that have flags, by name.
DECLARED: dict[str, Setting] = {}


def define(kind: type[Declared]) -> None:
    """Defines the flags of the settings of `kind`, and brings the help of those there up to date.

    What is registered after a flag was defined is then among its choices.
    """
    for name, declared in settings_of(kind).items():
        if name not in FLAGS:
            default = declared.default
            if isinstance(default, tuple) or (declared.is_range and default is not None):
                default = declared.text(default)
            written = tuple if declared.is_list else str if declared.is_range else declared.kind
            _DEFINE[written](name, default, "")
        DECLARED[name] = declared
        FLAGS[name].help = declared.help() + _takers(declared)


def workdir() -> pathlib.Path:
    """Returns the folder that --workdir names.

    Raises:
        UsageError: there is no such flag.
    """
    if not FLAGS.workdir:
        raise UsageError(
            "Expected --workdir, the folder of the run, got none; pass --workdir=FOLDER."
        )
    return user_path(FLAGS.workdir)


def read(kind: type[D]) -> D:
    """Returns the settings that all flags together stand for."""
    return kind(**{name: _value(each) for name, each in settings_of(kind).items()})


def trained_experiment(kind: type[Experiment] = Experiment) -> Experiment:
    """Returns the experiment of the run in --workdir, with the settings that flags give anew.

    Raises:
        UsageError: there is no run, or a flag asks for another model or task than it has.
    """
    folder = workdir()
    stored = kind.read(folder)
    declared = settings_of(kind)
    given: dict[str, Any] = {
        name: _value(each) for name, each in declared.items() if FLAGS[name].present
    }
    changed = dataclasses.replace(stored, **given)
    changed.refuse_unless_like(stored, str(folder), IN_EVALUATION)
    return changed


def _value(declared: Setting) -> Value:
    return setting_value(declared, FLAGS[declared.name].value)


def setting_value(declared: Setting, parsed: Value | list[str]) -> Value:
    """Returns the value of a setting from what its flag's parser gave.

    Raises:
        UsageError: it stands for none.
    """
    if declared.is_range and isinstance(parsed, str):
        return declared.read(parsed)
    if not isinstance(parsed, list):
        return parsed
    return declared.read(",".join(parsed)) if parsed else ()


def _takers(declared: Setting) -> str:
    """Which of those to choose from have the setting; nothing if all do."""
    registries: Mapping[str, Mapping[str, Callable[..., object]]] = {
        "task": tasks.REGISTRY,
        "model": models.REGISTRY,
        "solver": {**solvers.REGISTRY, **algorithms.REGISTRY},
        "flow": algorithms.REGISTRY,
        "algorithm": algorithms.REGISTRY,
    }
    owners = registries.get(declared.of, {})
    names = [name for name, made in owners.items() if _takes(made, declared)]
    return f" For {', '.join(names)}." if len(names) < len(owners) else ""


def _takes(made: Callable[..., object], declared: Setting) -> bool:
    arguments = arguments_of(made)
    return declared.argument in arguments or (declared.of == "flow" and "flow" in arguments)


define(Experiment)
flags.DEFINE_float(
    "stop_within",
    STOP_WITHIN,
    "Seconds in which SIGINT, SIGTERM or SIGHUP ends the command.",
)
flags.register_validator(
    "stop_within", lambda seconds: 1 <= seconds <= 86_400, "a number from 1 to 86400 is expected"
)
flags.DEFINE_bool(
    "tf32",
    False,
    "Let GPUs multiply float32 matrices in TensorFloat-32: faster, with three digits.",
)
flags.DEFINE_string(
    "workdir", None, "Folder of the run: its settings, checkpoints, logs and evaluation."
)
