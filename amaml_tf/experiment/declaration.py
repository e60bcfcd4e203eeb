"""How a setting is declared: once, as a field of a dataclass.

    step_size: float | None = setting("Step of a fixed-step solver.", of="solver", above=0)

The field gives name and type, `setting` the rest. A field of type `int | tuple[int, int] | None`
takes a number or a range, such as 1-10. Flags and `--help`, the checks of values, the
reading and writing of `config.json`, and the `NAME=VALUE` of a comparison all come from there.
"""

from __future__ import annotations

import dataclasses
import re
import sys
import types
import typing
from collections.abc import Callable, Iterable, Mapping
from typing import TypeAlias, TypeVar

from amaml_tf.errors import UsageError

#: What a setting can be. Lists are tuples, so that settings can be compared and are not changed.
Value: TypeAlias = str | int | float | bool | tuple[str | int | float, ...] | None

#: When a run may have another value of a setting than it began with: never; where its result is
#: evaluated or exported; where it is resumed, evaluated or exported.
NEVER, IN_EVALUATION, ON_RESUMING = range(3)

#: The largest whole number, unless the setting says otherwise: what is larger fits in no memory.
MOST_OF_A_SIZE = 10**6

# Of a kind: one value, several of them, and an example of these.
_WORDS = {
    int: ("a whole number", "whole numbers", "32,32"),
    float: ("a number", "numbers", "0.5,5"),
    str: ("a word", "words", "one,another"),
    bool: ("true or false", "true or false", "true"),
}
_METADATA = "setting"

S = TypeVar("S", bound="Declared")


@dataclasses.dataclass(frozen=True)
class Setting:
    """What is known of a setting.

    Attributes:
        name: of the field and the flag.
        kind: str, int, float or bool: of the value, or of the elements of a list.
        is_list: whether the value is a tuple.
        is_range: whether the value is a number or a tuple of the smallest and the largest number.
        default: of the field. Where it is None, so may the value be.
        meaning: for `--help`, one sentence.
        of: whose argument it is: "task", "model", "solver", "flow" or "algorithm"; "" for what is
            no argument of these.
        argument: the name of that argument.
        least: the smallest number allowed; None: any.
        above: what a number must be larger than; None: anything.
        most: the largest number allowed; None: any, but of whole numbers `MOST_OF_A_SIZE`.
        choices: gives the words allowed; None: any.
        may_change: NEVER, IN_EVALUATION or ON_RESUMING.
    """

    name: str
    kind: type
    is_list: bool
    is_range: bool
    default: Value
    meaning: str
    of: str
    argument: str
    least: float | None
    above: float | None
    most: float | None
    choices: Callable[[], Iterable[str]] | None
    may_change: int

    def check(self, value: Value) -> None:
        """Raises UsageError unless the setting can have this value."""
        if value is None and self.default is None:
            return
        values = value if isinstance(value, tuple) else (value,)
        is_a_range = self.is_range and isinstance(value, tuple) and len(value) == 2
        if isinstance(value, tuple) != self.is_list and not is_a_range:
            raise self._error(self._expected_kind(), value)
        for each in values:
            self._check_one(each)
        if is_a_range and list(values) != sorted(values):  # type: ignore[type-var]
            raise self._error("to be a range from the smaller number to the larger", value)

    def _check_one(self, value: Value) -> None:
        if not isinstance(value, (int, float) if self.kind is float else self.kind) or (
            isinstance(value, bool) and self.kind is not bool
        ):
            raise self._error(self._expected_kind(), value)
        if self.choices is not None and value not in (choices := tuple(self.choices())):
            raise UsageError(
                f"Expected {self.name} to be one of {', '.join(choices)}, got {value!r}; use one "
                "of them."
            )
        if isinstance(value, str):
            return
        # Written so that NaN fails as well.
        if self.above is not None and not value > self.above:  # type: ignore[operator]
            raise self._error(f"to be above {self.above:g}", value)
        if self.least is not None and not value >= self.least:  # type: ignore[operator]
            verb = "of" if self.kind is float else "to be"
            raise self._error(f"{verb} {self.least:g} or more", value)
        if not abs(value) <= sys.float_info.max:  # type: ignore[arg-type]
            raise self._error("to be a finite number", value)
        most = MOST_OF_A_SIZE if self.most is None and self.kind is int else self.most
        if most is not None and value > most:  # type: ignore[operator]
            raise self._error(f"to be {most:.12g} or less", value)

    def read(self, text: str, separator: str = ",") -> Value:
        """Returns the value that `text` stands for, with `separator` between elements of a list.

        Raises:
            UsageError: it stands for none.
        """
        is_range = self.is_range and re.fullmatch(r"\s*\d+\s*-\s*\d+\s*", text) is not None
        parts = text.split("-" if is_range else separator) if self.is_list or is_range else [text]
        try:
            values = tuple(self._read_one(part.strip()) for part in parts)
        except (KeyError, ValueError) as error:
            raise self._error(self._expected_kind(), text) from error
        return values if self.is_list or is_range else values[0]

    def text(self, value: Value) -> str:
        """Returns a value as its flag has it."""
        if self.is_range and isinstance(value, tuple):
            return "-".join(map(str, value))
        return as_text(value)

    def _read_one(self, text: str) -> str | int | float | bool:
        if self.kind is bool:
            return {"true": True, "false": False}[text.lower()]
        return self.kind(text)

    def help(self) -> str:
        """Returns the meaning, with the choices."""
        if self.choices is None:
            return self.meaning
        return f"{self.meaning} One of: {', '.join(self.choices())}."

    def _expected_kind(self) -> str:
        one, several, _ = _WORDS[self.kind]
        if self.is_range:
            return f"to be {one} or a range"
        return f"to be {several} with commas between them" if self.is_list else f"to be {one}"

    def _error(self, expected: str, came: Value) -> UsageError:
        example = "something like " if self.is_list or self.is_range else "another value"
        if self.is_range:
            example += f"--{self.name}=5 or --{self.name}=1-10"
        elif self.is_list:
            example += f"--{self.name}={_WORDS[self.kind][2]}"
        shown = repr(came) if isinstance(came, str) else self.text(came)
        return UsageError(f"Expected {self.name} {expected}, got {shown}; pass {example}.")


def setting(
    meaning: str,
    default: Value = None,
    *,
    of: str = "",
    argument: str | None = None,
    least: float | None = None,
    above: float | None = None,
    most: float | None = None,
    choices: Callable[[], Iterable[str]] | None = None,
    may_change: int = NEVER,
) -> typing.Any:
    """Declares a setting; see the attributes of `Setting`.

    A default of None leaves the value to the default of the argument that the setting is.
    """
    declared = {
        "meaning": meaning,
        "of": of,
        "argument": argument,
        "least": least,
        "above": above,
        "most": most,
        "choices": choices,
        "may_change": may_change,
    }
    return dataclasses.field(default=default, metadata={_METADATA: declared})


_KNOWN: dict[type, Mapping[str, Setting]] = {}


def settings_of(cls: type[Declared]) -> Mapping[str, Setting]:
    """Returns the settings that a class declares, by name."""
    if cls not in _KNOWN:
        _KNOWN[cls] = _read_fields(cls)
    return _KNOWN[cls]


def _read_fields(cls: type[Declared]) -> dict[str, Setting]:
    hints = typing.get_type_hints(cls)
    found = {}
    for field in dataclasses.fields(cls):
        kind, is_range = hints[field.name], False
        if typing.get_origin(kind) is types.UnionType:
            kind, *others = typing.get_args(kind)  # of `kind | None`
            is_range = any(typing.get_origin(other) is tuple for other in others)
        is_list = typing.get_origin(kind) is tuple
        declared = dict(field.metadata[_METADATA])
        declared["argument"] = declared["argument"] or field.name
        found[field.name] = Setting(
            name=field.name,
            kind=typing.get_args(kind)[0] if is_list else kind,
            is_list=is_list,
            is_range=is_range,
            default=typing.cast(Value, field.default),
            **declared,
        )
    return found


@dataclasses.dataclass(frozen=True, kw_only=True)
class Declared:
    """Base class of dataclasses whose fields are settings.

    Raises:
        UsageError: a value is not of its setting's type, or out of its range.
    """

    def __post_init__(self) -> None:
        for name, declared in settings_of(type(self)).items():
            declared.check(getattr(self, name))

    @classmethod
    def from_values(cls: type[S], values: Mapping[str, object]) -> S:
        """Returns what `values` of JSON stand for; missing settings have their defaults.

        Raises:
            UsageError: there is no setting of such a name, or it cannot have such a value.
        """
        unknown = [name for name in values if name not in settings_of(cls)]
        if unknown:
            raise UsageError(
                f"Expected the names of settings, got {', '.join(unknown)}; remove them."
            )
        return cls(**{n: tuple(v) if isinstance(v, list) else v for n, v in values.items()})

    def given(self, *of: str) -> dict[str, typing.Any]:
        """Returns the settings of these owners that are not None, by the names of arguments."""
        return {
            declared.argument: value
            for name, declared in settings_of(type(self)).items()
            if declared.of in of and (value := getattr(self, name)) is not None
        }

    def refuse_unless_like(self: S, stored: S, where: str, may_change: int) -> None:
        """Raises UsageError if a setting differs from that of a `stored` run and must not.

        Args:
            stored: settings of a run.
            where: the run is, for the message.
            may_change: ON_RESUMING or IN_EVALUATION, which the run is asked for.
        """
        differing = [
            name
            for name, declared in settings_of(type(self)).items()
            if declared.may_change < may_change and getattr(self, name) != getattr(stored, name)
        ]
        if differing:
            text = {name: settings_of(type(self))[name].text for name in differing}
            pairs = ", ".join(
                f"--{n}={text[n](getattr(self, n))} (there {text[n](getattr(stored, n))})"
                for n in differing
            )
            raise UsageError(
                f"Expected the settings of the run in {where}, got {pairs}; pass its settings, "
                "or another --workdir."
            )


def as_text(value: object) -> str:
    """Returns a value as a flag has it."""
    return ",".join(map(str, value)) if isinstance(value, tuple) else str(value)
