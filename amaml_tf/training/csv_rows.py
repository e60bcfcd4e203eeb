"""A CSV file with one row for a meta-step, which agrees with the checkpoint of a run."""

from __future__ import annotations

import csv
import io
import os
import pathlib
import re
from collections.abc import Mapping, Sequence

from amaml_tf.files import write_atomically
from amaml_tf.training.telling import tell


class CsvRows:
    """The rows of a CSV file whose first column, `step`, is the number of a meta-step.

    Args:
        path: the file; it need not exist.
        step: the meta-step from which the run goes on. Rows of later ones are removed from the
            file, because these meta-steps are done again. A file that cannot be read is set aside.
    """

    def __init__(self, path: pathlib.Path, step: int) -> None:
        self._path = path
        self._columns: list[str] = []
        self._size = 0  # of the rows that are known to be whole
        self._waiting: list[Mapping[str, object]] = []
        if path.is_file():
            self._forget_rows_after(step)

    def append(self, row: Mapping[str, object]) -> None:
        """Adds a row, which is on the disk when the call returns.

        Raises:
            OSError: it cannot be written. It is kept, and written together with the next row.
        """
        self._waiting.append(row)
        columns = list(dict.fromkeys([*self._columns, *(n for r in self._waiting for n in r)]))
        if columns != self._columns:
            self._write_anew([*self.read(), *self._waiting], columns)
        else:
            with self._path.open("r+", newline="", encoding="utf-8") as file:
                file.truncate(self._size)  # a full disk may have left half a row
                file.seek(self._size)
                file.write(_text(self._waiting, columns))
                file.flush()
                os.fsync(file.fileno())
        self._size = self._path.stat().st_size
        self._waiting = []

    def read(self) -> list[dict[str, str]]:
        """Returns the rows that were written."""
        if not self._size:
            return []
        text = self._path.read_bytes()[: self._size].decode()
        return list(csv.DictReader(io.StringIO(text, newline="")))

    def _forget_rows_after(self, step: int) -> None:
        # Spreadsheets write a byte order mark, other ends of lines, and quotes.
        content = self._path.read_bytes()
        text = content.decode("utf-8-sig", errors="replace")
        lines = text.splitlines(keepends=True)
        if lines and not lines[-1].endswith(("\n", "\r")):
            lines.pop()  # a kill cut it in two
        reader = csv.DictReader(io.StringIO("".join(lines), newline=""), restkey="")
        try:
            rows, columns = list(reader), list(reader.fieldnames or [])
        except csv.Error:  # a cell that is longer than any row
            rows, columns = [], []
        if lines and not _is_sound(columns, rows):
            aside = _free_name(self._path)
            self._path.rename(aside)
            tell(
                f"Expected {self._path} to be as it was written, got a file that another program "
                f"has changed; it is now {aside}, and a new one begins after meta-step {step}."
            )
            return
        kept = [row for row in rows if int(row["step"]) <= step]
        columns = columns if kept else []
        if _text(kept, columns, header=bool(kept)).encode() != content:
            self._write_anew(kept, columns)
        self._columns, self._size = columns, self._path.stat().st_size

    def _write_anew(self, rows: Sequence[Mapping[str, object]], columns: list[str]) -> None:
        write_atomically(self._path, _text(rows, columns, header=bool(rows)))
        self._columns = columns


def _is_sound(columns: Sequence[str], rows: Sequence[Mapping[str, str]]) -> bool:
    return columns[:1] == ["step"] and all(
        None not in row.values() and "" not in row and re.fullmatch("[0-9]{1,18}", row["step"])
        for row in rows
    )


def _text(
    rows: Sequence[Mapping[str, object]], columns: Sequence[str], *, header: bool = False
) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, restval="", lineterminator="\n")
    if header:
        writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def _free_name(path: pathlib.Path) -> pathlib.Path:
    """Returns the path of a file that does not exist, `NAME-damaged-N.csv`."""
    number = 1
    while (found := path.with_name(f"{path.stem}-damaged-{number}{path.suffix}")).exists():
        number += 1
    return found
