"""Reading a CSV file of ratings: each mistake is found, and told with its line."""

import array
import csv
import functools
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple, TextIO

import numpy as np

from amaml_tf.errors import UsageError
from amaml_tf.tasks.corrupt import CorruptData
from amaml_tf.tasks.ratings.ratings_family import Ratings
from amaml_tf.user_files import encoding_of, find_file

MOST_BYTES = 2**30
LONGEST_LINE = 2**16
LONGEST_NAME = 256
LARGEST_RATING = 1e9

_EXPECTED = "a CSV file of ratings"
_FORM = "lines user,item,rating[,time]"
# Usual names of the columns, without case, spaces and signs.
_NAMES: Mapping[str, tuple[str, ...]] = {
    "user": ("user", "userid", "username"),
    "item": ("item", "itemid", "movie", "movieid", "film", "filmid", "product", "productid"),
    "rating": ("rating", "ratings", "userrating", "score", "stars"),
    "time": ("time", "timestamp"),
}
# `float` also takes "1_000", "infinity" and the digits of other scripts.
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?", re.ASCII)


class _Columns(NamedTuple):
    """The positions of the columns, and how many cells a row has."""

    user: int
    item: int
    rating: int
    time: int | None
    num_cells: int


class _WrongRowError(Exception):
    """A row is not a rating: what was expected of it, and what came."""


def read_ratings_csv(path: str, max_corrupt: int = 0) -> Ratings:
    """Reads lines `user,item,rating` or `user,item,rating,time`.

    A header line may name the columns, which can then be in any order and have others beside them.
    Without a header the order is as above. Users and items are any text of 1 to 256 characters;
    spaces around them do not count. Ratings and times are decimal numbers. Without times, the lines
    are taken to be in order of time. Empty lines are passed over.

    Args:
        path: the file, of at most 1 GiB, in the encoding of its byte order mark, otherwise UTF-8.
        max_corrupt: how many rows that are no ratings may be left out. Each of them is logged.

    Returns:
        The ratings in the order of the file.

    Raises:
        UsageError: the file does not exist, is in another encoding, has more than `max_corrupt`
            rows that are no ratings, or has two ratings of a user for an item.
    """
    file = find_file(path, _EXPECTED, MOST_BYTES)
    encoding = encoding_of(file, _EXPECTED)
    corrupt = CorruptData("rows", max_corrupt)
    columns: _Columns | None = None
    users: dict[str, int] = {}
    items: dict[str, int] = {}
    user_of, item_of, line_of = array.array("q"), array.array("q"), array.array("q")
    values, times = array.array("d"), array.array("d")
    with file.open(newline="", encoding=encoding) as lines:
        for number, line in _lines(lines, path):
            where = f"{path}, line {number}"
            if columns is None:
                columns, is_header = _columns(line, where)
                if is_header:
                    continue
            try:
                user, item, value, time = _rating(_cells(line), columns)
            except _WrongRowError as error:
                corrupt.leave_out(where, *error.args)
                continue
            user_of.append(users.setdefault(user, len(users)))
            item_of.append(items.setdefault(item, len(items)))
            line_of.append(number)
            values.append(value)
            times.append(time)
    if not values:
        raise UsageError(f"Expected {_FORM}, got none in {path}; add some.")
    corrupt.report(corrupt.count + len(values))
    _require_no_repetition(np.array(user_of), np.array(item_of), np.array(line_of), path)
    return Ratings(
        users=np.array([*users], object)[np.array(user_of)],
        items=np.array([*items], object)[np.array(item_of)],
        values=np.array(values),
        times=np.array(times),
    )


def _lines(lines: TextIO, path: str) -> Iterator[tuple[int, str]]:
    """Yields the lines that are not empty, with their numbers."""
    pieces = iter(functools.partial(lines.readline, LONGEST_LINE + 1), "")
    for number, line in enumerate(pieces, start=1):
        if len(line) > LONGEST_LINE:
            raise UsageError(
                f"Expected {_FORM} of at most {LONGEST_LINE} characters, got more in {path}, line "
                f"{number}; check that the file is {_EXPECTED}."
            )
        if line.strip():
            yield number, line


def _cells(line: str) -> list[str]:
    """Returns the cells of one line; text in quotes must end in the same line."""
    try:
        (cells,) = csv.reader((line,), strict=True, skipinitialspace=True)
    except csv.Error as error:
        raise _WrongRowError("a row of CSV", f"{line.strip():.60} ({error})") from error
    return [cell.strip() for cell in cells]


def _columns(line: str, where: str) -> tuple[_Columns, bool]:
    """Returns the columns of a file with this first line, and whether the line is a header.

    A wrong first line is never left out: what the columns mean would be a guess.
    """
    try:
        first = _cells(line)
    except _WrongRowError as error:
        expected, came = error.args
        raise UsageError(f"Expected {expected}, got {came} in {where}; correct it.") from error
    names = [re.sub(r"[\W_]", "", cell).lower() for cell in first]
    found = {
        column: [place for place, name in enumerate(names) if name in known]
        for column, known in _NAMES.items()
    }
    if any(_NUMBER.fullmatch(cell) for cell in first) or not found["rating"]:
        if len(first) not in (3, 4) or not _NUMBER.fullmatch(first[2]):
            raise UsageError(
                f"Expected {_FORM}, or first a header with the columns user, item, rating and "
                f"perhaps time, got {_shown(first)} in {where}; correct it."
            )
        return _Columns(0, 1, 2, 3 if len(first) == 4 else None, len(first)), False
    for column, places in found.items():
        if len(places) > 1 or (not places and column != "time"):
            raise UsageError(
                f"Expected a header with one column {column!r}, got {len(places)} of them in "
                f"{where}, {_shown(first)}; name the columns user, item, rating and perhaps time."
            )
    time = found["time"][0] if found["time"] else None
    user, item, rating = (found[name][0] for name in ("user", "item", "rating"))
    return _Columns(user, item, rating, time, len(first)), True


def _rating(cells: Sequence[str], columns: _Columns) -> tuple[str, str, float, float]:
    """Returns the user, the item, the rating and the time (0 if there is none) of a row."""
    if len(cells) != columns.num_cells:
        raise _WrongRowError(
            f"{_FORM} with {columns.num_cells} cells, as in the first", _shown(cells)
        )
    user, item = cells[columns.user], cells[columns.item]
    for name, what in ((user, "user"), (item, "item")):
        if not 1 <= len(name) <= LONGEST_NAME:
            expected = f"the name of a {what}, of 1 to {LONGEST_NAME} characters"
            raise _WrongRowError(expected, f"{len(name)} characters in {_shown(cells)}")
    value = _number(cells, columns.rating)
    if abs(value) > LARGEST_RATING:
        raise _WrongRowError(f"a rating of at most {LARGEST_RATING:g}", _shown(cells))
    return user, item, value, 0.0 if columns.time is None else _number(cells, columns.time)


def _number(cells: Sequence[str], place: int) -> float:
    if _NUMBER.fullmatch(cells[place]) and np.isfinite(value := float(cells[place])):
        return value
    raise _WrongRowError(f"{_FORM} with numbers for rating and time", _shown(cells))


def _shown(cells: Sequence[str]) -> str:
    text = repr(",".join(cells))
    return text if len(text) <= 80 else f"{text:.76}...'"


def _require_no_repetition(
    users: np.ndarray, items: np.ndarray, lines: np.ndarray, path: str
) -> None:
    """Raises UsageError, which names the lines, if a user has rated an item twice."""
    order = np.lexsort((lines, items, users))
    again = (np.diff(users[order]) == 0) & (np.diff(items[order]) == 0)
    if again.any():
        first = int(np.argmax(again))
        raise UsageError(
            f"Expected one rating of a user for an item, got two in {path}, lines "
            f"{lines[order[first]]} and {lines[order[first + 1]]}; keep one."
        )
