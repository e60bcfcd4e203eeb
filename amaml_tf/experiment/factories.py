"""Calling what a registry holds with the settings that are given, no more and no fewer."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection, Mapping
from typing import Any, TypeVar

import tensorflow_probability as tfp

from amaml_tf import solvers
from amaml_tf.errors import UsageError

T = TypeVar("T")

# Arguments of solvers whose steps are fixed.
_FIXED_STEPS = ("step_size", "num_stages", "order")


def arguments_of(factory: Callable[..., object]) -> Mapping[str, inspect.Parameter]:
    """Returns the parameters of a class or function, by name."""
    return inspect.signature(factory).parameters


def made(
    what: str,
    factory: Callable[..., T],
    given: Mapping[str, Any],
    flag_of: Mapping[str, str],
) -> T:
    """Calls `factory` with the arguments `given`, if it has them all and needs no others.

    Args:
        what: is made, for messages: "task sinusoid".
        factory: a class or a function.
        given: arguments by name.
        flag_of: flags of arguments whose flag has another name.

    Raises:
        UsageError: it lacks an argument that is given, or needs one that is not.
    """
    parameters = arguments_of(factory)
    foreign = [name for name in given if name not in parameters]
    if foreign:
        raise UsageError(
            f"Expected settings that {what} has, got {_flags(foreign, flag_of)}; leave these out, "
            "or choose another."
        )
    missing = [
        name for name, parameter in parameters.items() if _needed(parameter) and name not in given
    ]
    if missing:
        raise UsageError(
            f"Expected a value of {_flags(missing, flag_of)} for {what}, got none; pass "
            f"{'it' if len(missing) == 1 else 'them'}."
        )
    return factory(**given)


def _needed(parameter: inspect.Parameter) -> bool:
    has_default = parameter.default is not inspect.Parameter.empty
    return not has_default and parameter.kind is not inspect.Parameter.VAR_KEYWORD


def made_solvers(
    chosen: Mapping[str, str], given: Mapping[str, Any]
) -> dict[str, tfp.math.ode.Solver]:
    """Makes solvers by their roles, of the settings `given`: each is for those that have it.

    An adjoint solver that can choose its own steps does so: a step size is for the other solver.
    """
    factories = {role: solvers.REGISTRY.find(name) for role, name in chosen.items()}
    known = {role: arguments_of(factory) for role, factory in factories.items()}
    if (parameter := known.get("adjoint_solver", {}).get("step_size")) and not _needed(parameter):
        known["adjoint_solver"] = {
            name: v for name, v in known["adjoint_solver"].items() if name not in _FIXED_STEPS
        }
    foreign = set(given).difference(*known.values())  # to every one of them
    return {
        role: made(
            f"{role} {chosen[role]}",
            factory,
            {name: v for name, v in given.items() if name in known[role] or name in foreign},
            {},
        )
        for role, factory in factories.items()
    }


def of_keras(kind: str, name: str, get: Callable[[str], T]) -> T:
    """Returns what Keras knows by `name`.

    Raises:
        UsageError: Keras knows nothing of that name.
    """
    try:
        return get(name)
    except (TypeError, ValueError) as error:  # Keras makes a TypeError of one that needs arguments
        raise UsageError(
            f"Expected {kind} to be the name of one of Keras, got {name!r}; see "
            f"https://keras.io/api for the {kind}s there are."
        ) from error


def _flags(arguments: Collection[str], flag_of: Mapping[str, str]) -> str:
    return " and ".join(f"--{flag_of.get(name, name)}" for name in arguments)
