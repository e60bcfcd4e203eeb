"""The tree of the package, a line a file; `python tests/house/file_tree.py` writes it.

What a file is for stands in the first line of its docstring.
"""

from __future__ import annotations

import ast
import pathlib
import re
from collections.abc import Iterator

from rules import PACKAGE, ROOT

DOCUMENT = ROOT / "docs" / "architecture.md"
_WIDTH = 38


def tree(root: pathlib.Path = ROOT) -> str:
    """Returns the lines of the tree."""
    return "\n".join(_lines(root / PACKAGE, 0))


def with_tree(document: str, lines: str) -> str:
    """Returns the document with `lines` as its tree."""
    block = re.compile(r"(## The tree\n.*?```\n).*?(```)", re.DOTALL)
    return block.sub(lambda found: f"{found[1]}{lines}\n{found[2]}", document, count=1)


def _lines(folder: pathlib.Path, depth: int) -> Iterator[str]:
    yield _line(folder / "__init__.py", f"{folder.name}/", depth)
    files = sorted(each for each in folder.glob("*.py") if each.name != "__init__.py")
    for path in files:
        yield _line(path, path.name, depth + 1)
    for inner in sorted(each for each in folder.iterdir() if (each / "__init__.py").is_file()):
        yield from _lines(inner, depth + 1)


def _line(path: pathlib.Path, name: str, depth: int) -> str:
    docstring = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    first = docstring.split("\n\n")[0].replace("\n", " ").replace("`", "").rstrip(".")
    return f"{'  ' * depth + name:<{_WIDTH}}{first}"


if __name__ == "__main__":
    text = DOCUMENT.read_text(encoding="utf-8")
    DOCUMENT.write_text(with_tree(text, tree()), encoding="utf-8")
