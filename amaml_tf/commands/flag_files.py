"""Flag files, read before the flags are parsed, so that a mistake is told with its line."""

from __future__ import annotations

import itertools
import pathlib
import re
import sys
from collections.abc import Iterator, Sequence

from absl import flags

from amaml_tf.commands.flags import DECLARED, setting_value
from amaml_tf.errors import UsageError
from amaml_tf.user_files import read_text

FLAGS = flags.FLAGS

_FLAG_FILE = re.compile(r"--?flagfile(=(?P<path>.*))?", re.DOTALL)
_FLAG = re.compile(r"--?(?P<name>[A-Za-z_][\w-]*)(=(?P<value>.*))?", re.DOTALL)
_EXPECTED = "a file of flags, a line each"
# Of all flag files together, and of files within one another.
_MOST_LINES, _MOST_WITHIN = 2_000, 100


def parse(arguments: Sequence[str]) -> list[str]:
    """Parses the command line; returns the arguments that are no flags, the program first.

    It ends the program with one sentence if a flag is wrong.
    """
    try:
        return FLAGS([arguments[0], *_expanded(arguments[1:])])
    except UsageError as error:
        sentence = str(error)
    except (flags.Error, ValueError) as error:  # absl has a ValueError for --noNAME=VALUE
        sentence = (
            f"Expected flags that --help lists, got a mistake: {' '.join(str(error).split())}"
        )
    sys.exit(f"{pathlib.Path(arguments[0]).stem}: {sentence}")


def _expanded(arguments: Sequence[str]) -> Iterator[str]:
    """Yields arguments with those of flag files in the place of --flagfile."""
    remaining, lines = iter(arguments), itertools.count(1)
    for argument in remaining:
        if argument == "--":
            yield argument
            yield from remaining
        elif found := _FLAG_FILE.fullmatch(argument):
            path = found["path"] if found["path"] is not None else next(remaining, "")
            yield from _flags_of(path, (), lines)
        else:
            yield argument


def _flags_of(path: str, within: tuple[str, ...], lines: Iterator[int]) -> Iterator[str]:
    """Yields the flags of a flag file, and of those that it names; each is checked.

    Args:
        path: the file.
        within: the files that name it, from the first on.
        lines: counts the lines that are read.
    """
    if path in within:
        raise UsageError(
            f"Expected flag files that do not name one another in a circle, got {path} within "
            f"{' within '.join(reversed(within))}; remove one --flagfile."
        )
    for number, line in enumerate(read_text(path, _EXPECTED).split("\n"), start=1):
        if next(lines) > _MOST_LINES or len(within) > _MOST_WITHIN:
            raise UsageError(
                f"Expected flag files of at most {_MOST_LINES} lines together, at most "
                f"{_MOST_WITHIN} within one another, got more in {path}; remove some."
            )
        text = line.strip()
        if not text or text.startswith(("#", "//")):
            continue
        if found := _FLAG_FILE.fullmatch(text):
            yield from _flags_of(found["path"] or "", (*within, path), lines)
        else:
            _require_flag(text, f"{path}, line {number}")
            yield text


def _require_flag(text: str, where: str) -> None:
    found = _FLAG.fullmatch(text)
    if not found:
        raise UsageError(f"Expected lines --NAME=VALUE, got {text[:60]!r} in {where}; correct it.")
    name, value = found["name"], found["value"]
    if name not in FLAGS and name.startswith("no") and name[2:] in FLAGS:
        name, value = name[2:], "false" if value is None else "="  # --noNAME has no value
    if name not in FLAGS:
        raise UsageError(
            f"Expected the names of flags, got --{name} in {where}; --help lists the flags."
        )
    flag = FLAGS[name]
    if value is None and flag.boolean:
        return
    try:
        if value is None:
            raise ValueError("it has none")
        parsed = flag.parser.parse(value)
    except (TypeError, ValueError) as error:
        raise UsageError(
            f"Expected a value of --{name}, got {text[:60]!r} in {where} ({error}); correct it."
        ) from error
    if declared := DECLARED.get(name):
        try:
            declared.check(setting_value(declared, parsed))
        except UsageError as error:
            raise UsageError(f"{error} (It is in {where}.)") from error
