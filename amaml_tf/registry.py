"""The registry class: the names of solvers, algorithms, task families and models.

Each of these kinds has its own registry. A new solver, for example, needs one file that defines
and registers its class,

    @REGISTRY.register("heun")
    class Heun(FixedStepSolver): ...

and one line that imports it, in the `__init__.py` of its folder. Flags, flag files, the choices
that `--help` lists, and the tests for all members of a kind are made from the registry.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Generic, TypeVar

from amaml_tf.errors import UsageError

T = TypeVar("T")
F = TypeVar("F", bound=Callable[..., object])


class Registry(dict[str, Callable[..., T]], Generic[T]):
    """The classes or functions that make objects of one kind, by the names that flags use.

    Args:
        kind: the name of the kind in messages.
    """

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind

    def register(self, name: str, **fixed: object) -> Callable[[F], F]:
        """Returns a decorator that adds a class or a function under `name`.

        Args:
            name: the name in flags and flag files.
            **fixed: arguments that are fixed under this name.

        Raises:
            UsageError: if the name is taken.
        """

        def add(made: F) -> F:
            known = self.get(name)
            if known is not None and getattr(known, "__qualname__", "") != made.__qualname__:
                raise UsageError(
                    f"Expected a new name for a {self.kind}, got {name!r}, the name of "
                    f"{known}; choose another name."
                )
            self[name] = functools.partial(made, **fixed) if fixed else made  # type: ignore[assignment]
            return made

        return add

    def find(self, name: str) -> Callable[..., T]:
        """Returns the class or function with this name.

        Raises:
            UsageError: if nothing has this name.
        """
        if name not in self:
            raise UsageError(
                f"Expected {self.kind} to be one of {', '.join(self)}, got {name!r}; use one of "
                "them."
            )
        return self[name]
