"""The rules of the house: `python tests/house/rules.py` lists what in the source breaks one.

- Imports run down the floors that `docs/architecture.md` names, without a circle.
- A file has at most 320 lines, a function at most 50 beside its docstring.
- No public function takes or gives a bare `Any`.
"""

from __future__ import annotations

import ast
import pathlib
import re
import sys
from collections.abc import Iterable, Iterator, Mapping

ROOT = pathlib.Path(__file__).parents[2]
PACKAGE = "amaml_tf"
MOST_LINES = 320
MOST_LINES_OF_A_FUNCTION = 50

#: What may break a rule, and why.
EXCEPTIONS: Mapping[str, str] = {
    "amaml_tf/experiment/declaration.py: setting takes or gives Any": (
        "it gives the default of a field of any type, as dataclasses.field does"
    ),
}

Function = ast.FunctionDef | ast.AsyncFunctionDef


def modules(root: pathlib.Path, package: str = PACKAGE) -> dict[str, pathlib.Path]:
    """Returns the modules of a package by their names, packages by that of their folder."""
    found = {}
    for path in sorted((root / package).rglob("*.py")):
        parts = path.relative_to(root).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def imports(paths: Mapping[str, pathlib.Path]) -> dict[str, set[str]]:
    """Returns which modules each module imports; `from package import module` is of the module."""
    graph: dict[str, set[str]] = {name: set() for name in paths}
    for name, path in paths.items():
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                targets = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and node.module:
                inner = [f"{node.module}.{alias.name}" for alias in node.names]
                targets = [each if each in paths else node.module for each in inner]
            else:
                continue
            graph[name].update(target for target in targets if target in paths)
    return graph


def circle(graph: Mapping[str, Iterable[str]]) -> list[str]:
    """Returns the modules of one circle of imports, nothing if there is none."""
    finished: set[str] = set()

    def visit(name: str, way: list[str]) -> list[str]:
        if name in way:
            return [*way[way.index(name) :], name]
        if name in finished:
            return []
        for target in sorted(graph[name]):
            if found := visit(target, [*way, name]):
                return found
        finished.add(name)
        return []

    return next((found for name in sorted(graph) if (found := visit(name, []))), [])


def floors(document: str) -> dict[str, int]:
    """Returns the floor of each room, the lowest 0, from the document's block of floors."""
    block = re.search(r"## Floors\n.*?```\n(.*?)```", document, re.DOTALL)
    if block is None:
        raise ValueError("Expected a section 'Floors' with a block of lines, got none.")
    lines = reversed(block.group(1).strip().splitlines())
    return {room.strip(): n for n, line in enumerate(lines) for room in line.split(",")}


def room_of(name: str) -> str:
    """Returns the folder or file of the package that a module is in or is."""
    return name.split(".")[1] if "." in name else name


def against_the_floors(
    graph: Mapping[str, Iterable[str]], floor_of: Mapping[str, int]
) -> Iterator[str]:
    """Yields the imports from a room of the same floor or of a higher one."""
    for name, targets in graph.items():
        room = room_of(name)
        if room == PACKAGE:
            continue  # it names what is public
        if room not in floor_of:
            yield f"{name} is on no floor"
            continue
        for target in sorted(targets):
            other = room_of(target)
            if other not in (room, PACKAGE) and floor_of.get(other, 99) >= floor_of[room]:
                yield f"{name} imports {target}, which is not below it"


def too_long(path: pathlib.Path) -> Iterator[str]:
    """Yields a file, and its functions, that have too many lines."""
    text = path.read_text(encoding="utf-8")
    if (count := len(text.splitlines())) > MOST_LINES:
        yield f"has {count} lines"
    for function in _functions(ast.parse(text)):
        count = (function.end_lineno or 0) - function.lineno + 1 - _lines_of_docstring(function)
        if count > MOST_LINES_OF_A_FUNCTION:
            yield f"{function.name} has {count} lines"


def bare_any(path: pathlib.Path) -> Iterator[str]:
    """Yields the public functions whose signature has a parameter or a result of any type."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for owner, function in _public_functions(tree):
        arguments = function.args
        every = [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs]
        every += [each for each in (arguments.vararg, arguments.kwarg) if each is not None]
        annotations = [each.annotation for each in every] + [function.returns]
        if any(_is_bare_any(each) for each in annotations):
            yield f"{owner}{function.name} takes or gives Any"


def _functions(tree: ast.AST) -> Iterator[Function]:
    return (node for node in ast.walk(tree) if isinstance(node, Function))


def _public_functions(tree: ast.Module) -> Iterator[tuple[str, Function]]:
    for node in tree.body:
        if isinstance(node, Function) and not node.name.startswith("_"):
            yield "", node
        if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
            for method in node.body:
                if isinstance(method, Function) and (
                    method.name == "__init__" or not method.name.startswith("_")
                ):
                    yield f"{node.name}.", method


def _lines_of_docstring(function: Function) -> int:
    first = function.body[0]
    if isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant):
        return (first.end_lineno or 0) - first.lineno + 1
    return 0


def _is_bare_any(annotation: ast.expr | None) -> bool:
    if annotation is None:
        return False
    return any(part.strip() in ("Any", "typing.Any") for part in ast.unparse(annotation).split("|"))


def broken(root: pathlib.Path = ROOT) -> list[str]:
    """Returns a line for every rule that is broken, but for the exceptions."""
    paths = modules(root)
    graph = imports(paths)
    document = (root / "docs" / "architecture.md").read_text(encoding="utf-8")
    found = [*against_the_floors(graph, floors(document))]
    if way := circle(graph):
        found.append(f"circle: {' -> '.join(way)}")
    checked = [*paths.values(), *(root / "benchmarks").rglob("*.py")]
    checked += [*(root / "export").rglob("*.py"), *(root / "examples").rglob("*.py")]
    for path in checked:
        where = path.relative_to(root)
        found += [f"{where}: {each}" for each in (*too_long(path), *bare_any(path))]
    return [line for line in found if line not in EXCEPTIONS]


if __name__ == "__main__":
    lines = broken()
    print(*lines, sep="\n")
    sys.exit(bool(lines))
