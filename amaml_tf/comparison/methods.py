"""The methods to compare, with their settings and the candidates of the search."""

from __future__ import annotations

import dataclasses
import itertools
import re
from collections.abc import Mapping, Sequence

from amaml_tf.errors import UsageError
from amaml_tf.experiment import Experiment
from amaml_tf.experiment.declaration import Setting, Value, settings_of

_SEARCH = "search."


@dataclasses.dataclass(frozen=True)
class Method:
    """An algorithm with its settings.

    Attributes:
        label: its name in tables and figures.
        settings: fields of an Experiment that differ from the shared ones.
        search: further fields, each with the values that the search tries.
    """

    label: str
    settings: dict[str, Value]
    search: dict[str, tuple[Value, ...]]

    @property
    def folder(self) -> str:
        """The label as the name of a folder."""
        return re.sub(r"[^A-Za-z0-9]+", "_", self.label).strip("_")

    def candidates(self) -> list[dict[str, Value]]:
        """Returns the settings of every point of the search grid; one if nothing is searched."""
        points = itertools.product(*self.search.values())
        return [self.settings | dict(zip(self.search, point, strict=True)) for point in points]


def parse_methods(
    texts: Sequence[str], searches: Sequence[str], kind: type[Experiment] = Experiment
) -> list[Method]:
    """Reads methods such as `"MAML: algorithm=maml,num_steps=5,search.step_size=0.01|0.1"`.

    Args:
        texts: one per method.
        searches: such as `"meta_learning_rate=0.01,0.001"`, for every method that does not set or
            search this field itself.
        kind: the class of the experiment, which declares the settings.

    Raises:
        UsageError: a text cannot be read, or two methods have the same label.
    """
    declared = settings_of(kind)
    shared = dict(_searched(declared, text) for text in searches)
    methods = [_parse_method(declared, text, shared) for text in texts]
    folders = [method.folder for method in methods]
    if not methods or len(set(folders)) < len(folders):
        raise UsageError(
            f"Expected --method once or more, each with a label of its own, got {list(texts)}; "
            'pass something like --method="MAML: algorithm=maml,step_size=0.01,num_steps=5".'
        )
    return methods


def _parse_method(
    declared: Mapping[str, Setting], text: str, shared: Mapping[str, tuple[Value, ...]]
) -> Method:
    label, colon, rest = (part.strip() for part in text.partition(":"))
    if not (re.search(r"[A-Za-z0-9]", label) and colon):
        raise UsageError(
            f"Expected --method to be a label, a colon and settings, got {text!r}; pass something "
            'like --method="MAML: algorithm=maml,step_size=0.01,num_steps=5".'
        )
    pairs = [_pair(item, f"--method={label}") for item in rest.split(",") if item.strip()]
    settings = {n: _value(declared, n, text) for n, text in pairs if not n.startswith(_SEARCH)}
    searches = {n: text for n, text in pairs if n.startswith(_SEARCH)}
    own = {
        name.removeprefix(_SEARCH): _values(declared, name.removeprefix(_SEARCH), text.split("|"))
        for name, text in searches.items()
    }
    # A setting that a method gives itself is not searched, unless the method says so.
    inherited = {name: values for name, values in shared.items() if name not in settings}
    return Method(label, settings, inherited | own)


def _searched(declared: Mapping[str, Setting], text: str) -> tuple[str, tuple[Value, ...]]:
    name, values = _pair(text, "--search")
    return name, _values(declared, name, values.split(","))


def _pair(item: str, where: str) -> tuple[str, str]:
    name, equals, value = (part.strip() for part in item.partition("="))
    if not equals:
        raise UsageError(f"Expected NAME=VALUE in {where}, got {item.strip()!r}; add the value.")
    return name, value


def _values(declared: Mapping[str, Setting], name: str, texts: Sequence[str]) -> tuple[Value, ...]:
    return tuple(_value(declared, name, text.strip()) for text in texts)


def _value(declared: Mapping[str, Setting], name: str, text: str) -> Value:
    """Returns the value of a setting; an empty text is None, and + separates items of a list."""
    if name not in declared:
        raise UsageError(
            f"Expected the name of a setting in --method or --search, got {name!r}; --help lists "
            "the settings."
        )
    try:
        return declared[name].read(text, "+") if text else None
    except UsageError as error:
        raise UsageError(
            f"Expected a value of {name} (true or false, a number, a word, or several with + "
            f"between them), got {text!r}; see --help for what it takes."
        ) from error
