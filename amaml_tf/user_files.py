"""Files that users name and write: paths with ~, text in a known encoding, and JSON."""

from __future__ import annotations

import codecs
import json
import os
import pathlib
import re
from typing import BinaryIO

from amaml_tf.aliases import PathLike
from amaml_tf.errors import UsageError

#: The largest file of settings or names that is read.
MOST_BYTES = 2**24
_CHUNK = 2**20

# The mark of UTF-32 begins with that of UTF-16, so it is first.
_MARKS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)


def user_path(path: PathLike) -> pathlib.Path:
    """Returns the path that a user means: `~` is their home folder.

    Raises:
        UsageError: there is no such home folder, the path is a URL, or it has a NUL character.
    """
    if "://" in str(path):  # it would become a folder "gs:" on this machine
        raise UsageError(f"Expected a path on this machine, got {str(path)!r}; pass one.")
    try:
        expanded = pathlib.Path(path).expanduser()
    except RuntimeError as error:
        raise UsageError(
            f"Expected a path, got {str(path)!r}, which begins with a home folder that is not "
            "known; write the folder out."
        ) from error
    if "\0" in str(expanded):
        raise UsageError(f"Expected a path, got {str(path)!r} with a NUL character; remove it.")
    return expanded


def require_readable_name(path: PathLike, what: str) -> None:
    """Raises UsageError if TensorFlow would not find its own files at `path`, of `what`."""
    if found := re.findall(r"[\[\]\\]", str(path)):
        raise UsageError(
            f"Expected the path of {what} without {found[0]}, got {path}: TensorFlow takes it for "
            "a pattern and finds no files there; pass another."
        )


def find_file(path: PathLike, expected: str, most_bytes: int = MOST_BYTES) -> pathlib.Path:
    """Returns the path of an ordinary file of bounded size.

    Args:
        path: the file, as the user names it.
        expected: what the file is, for messages: "a CSV file of ratings".
        most_bytes: the largest size.

    Raises:
        UsageError: there is no such file, or it is too large.
    """
    file = user_path(path)
    if not os.path.isfile(file):  # unlike that of pathlib, it never raises an error
        raise UsageError(f"Expected {expected}, got no file at {path}; check the path.")
    if (size := file.stat().st_size) > most_bytes:
        raise UsageError(
            f"Expected {expected} of at most {most_bytes} bytes, got {size} bytes in {path}; pass "
            "a smaller file."
        )
    return file


def encoding_of(file: pathlib.Path, expected: str) -> str:
    """Returns the encoding of a text file: that of its byte order mark, otherwise UTF-8.

    The whole file is read, a piece at a time, so that later reading cannot fail.

    Args:
        file: the file.
        expected: what the file is, for messages.

    Raises:
        UsageError: it cannot be read, is not text in this encoding, or holds a NUL character.
    """
    try:
        with file.open("rb") as stream:
            head = stream.read(4)
            encoding = next((name for mark, name in _MARKS if head.startswith(mark)), "utf-8")
            stream.seek(0)
            _require_text(stream, encoding, f"{expected}, got {file}")
    except OSError as error:
        raise UsageError(
            f"Expected {expected}, got {file}, which cannot be read ({error.strerror}); check its "
            "permissions."
        ) from error
    return encoding


def _require_text(stream: BinaryIO, encoding: str, where: str) -> None:
    # The mark itself counts among the bytes of an offset.
    decoder = codecs.getincrementaldecoder(encoding.removesuffix("-sig"))()
    line, position, chunk = 1, 0, b"\n"
    while chunk:
        chunk = stream.read(_CHUNK)
        pending = len(decoder.getstate()[0])
        try:
            text = decoder.decode(chunk, final=not chunk)
        except UnicodeDecodeError as error:
            line += error.object[: error.start].count(b"\n")
            raise UsageError(
                f"Expected {where} with bytes that are not {encoding.removesuffix('-sig').upper()} "
                f"at offset {position - pending + error.start}, line {line}; save it as UTF-8."
            ) from error
        if "\0" in text:
            line += text[: text.index("\0")].count("\n")
            raise UsageError(
                f"Expected {where} with a NUL character in line {line}; save it as UTF-8 text "
                "(UTF-16 is read if it begins with a byte order mark)."
            )
        line += text.count("\n")
        position += len(chunk)


def read_text(path: PathLike, expected: str) -> str:
    """Returns the text of a file of at most 16 MiB; see `find_file` and `encoding_of`."""
    file = find_file(path, expected)
    return file.read_text(encoding=encoding_of(file, expected))


def read_json(path: PathLike, expected: str) -> object:
    """Returns what a JSON file holds; see `read_text`.

    Raises:
        UsageError: it cannot be read, is not JSON, or an object has the same name twice.
    """
    text = read_text(path, expected)
    try:
        return json.loads(text, object_pairs_hook=_without_repetition)
    except RecursionError as error:
        raise UsageError(
            f"Expected {expected}, got {path} with too many brackets inside of one another; "
            "correct it."
        ) from error
    except ValueError as error:  # json.JSONDecodeError names line and column
        raise UsageError(f"Expected {expected}, got {path}: {error}; correct it.") from error


def _without_repetition(pairs: list[tuple[str, object]]) -> dict[str, object]:
    """Returns the pairs of an object; JSON would keep the last of two with the same name."""
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"the name {twice!r} is there twice")
    return found
