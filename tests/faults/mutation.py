"""Mutation testing of the numerics: `python tests/faults/mutation.py --mutants=150 --seed=0`.

A mutant is the package with one small mistake in `flow/` or `solvers/`: another operator, another
constant, a condition the other way round. It is killed if a test fails, or does not end. The
mutants that survive are listed: each lacks a test, or is no mistake.

What cannot change a result is left as it is: annotations, docstrings, and messages; the sign of
`axis=-1`, as the arrays here have two axes, `[B, P]`, of which the last is axis 1 (the number is
changed: `axis=-2` is a mistake); and numbers in `maximum_iterations`, which would only be raised,
as every loop has a condition that ends it before.

TensorFlow is imported once. Each mutant is a fork, which imports the package with its mistake and
runs the tests that execute the mistaken line, the quickest first, up to the first that fails.
"""

from __future__ import annotations

import argparse
import ast
import copy
import importlib.abc
import importlib.machinery
import importlib.util
import pathlib
import random
import sys
import types
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import covering

ROOT = pathlib.Path(__file__).parents[2]
ROOMS = ("flow", "solvers")
TESTS = ("tests/solvers", "tests/flow", "tests/algorithms")

_OPERATORS: dict[type[ast.AST], type[ast.AST]] = {
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
    ast.Mult: ast.Div,
    ast.Div: ast.Mult,
    ast.Lt: ast.GtE,
    ast.LtE: ast.Gt,
    ast.Gt: ast.LtE,
    ast.GtE: ast.Lt,
    ast.Eq: ast.NotEq,
    ast.NotEq: ast.Eq,
    ast.Is: ast.IsNot,
    ast.IsNot: ast.Is,
    ast.And: ast.Or,
    ast.Or: ast.And,
    ast.BitAnd: ast.BitOr,
    ast.BitOr: ast.BitAnd,
}


class Mutant(NamedTuple):
    """A file with a mistake: its path, its lines, what the mistake is, and the tree with it."""

    path: pathlib.Path
    lines: range
    what: str
    tree: ast.Module


def mutants_of(path: pathlib.Path) -> Iterator[Mutant]:
    """Yields all mutants of a file."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    skipped = _not_computed(tree)
    places = [node for node in ast.walk(tree) if id(node) not in skipped]
    for number, node in enumerate(ast.walk(tree)):
        if node in places and (replaced := _replaced(node)) is not None:
            mutated = copy.deepcopy(tree)
            _put(mutated, list(ast.walk(mutated))[number], replaced)
            ast.fix_missing_locations(mutated)
            before, after = ast.unparse(node), ast.unparse(replaced)
            yield Mutant(path, _lines(tree, node), f"{before}  ->  {after}", mutated)


def _lines(tree: ast.Module, expression: ast.AST) -> range:
    """Returns the lines from the beginning of the statement of an expression to its own end."""
    first, last = getattr(expression, "lineno", 1), getattr(expression, "end_lineno", 1)
    begins = [
        each.lineno
        for each in ast.walk(tree)
        if isinstance(each, ast.stmt) and each.lineno <= first and last <= (each.end_lineno or 0)
    ]
    return range(max(begins, default=first), last + 1)


def _not_computed(tree: ast.Module) -> set[int]:
    """Returns the nodes of annotations, docstrings, messages, and what else changes nothing."""
    found: set[int] = set()
    for node in ast.walk(tree):
        parts: list[ast.AST | None] = []
        if isinstance(node, ast.keyword) and ast.unparse(node) == "axis=-1":
            found.add(id(node.value))
        if isinstance(node, ast.keyword) and node.arg == "maximum_iterations":
            found.update(id(each) for each in ast.walk(node) if isinstance(each, ast.Constant))
        if isinstance(node, ast.arg | ast.AnnAssign):
            parts.append(node.annotation)
        elif isinstance(node, ast.FunctionDef):
            parts.append(node.returns)
        elif isinstance(node, ast.JoinedStr | ast.Raise | ast.ImportFrom):
            parts.append(node)
        for part in parts:
            if part is not None:
                found.update(id(each) for each in ast.walk(part))
    return found


def _replaced(node: ast.AST) -> ast.expr | None:
    """Returns the mistake in place of an expression; None if there is none to make."""
    new = copy.deepcopy(node)
    if isinstance(new, ast.BinOp | ast.BoolOp) and type(new.op) in _OPERATORS:
        new.op = _OPERATORS[type(new.op)]()  # type: ignore[assignment]
    elif isinstance(new, ast.Compare) and type(new.ops[0]) in _OPERATORS:
        new.ops[0] = _OPERATORS[type(new.ops[0])]()  # type: ignore[call-overload]
    elif isinstance(new, ast.UnaryOp) and isinstance(new.op, ast.USub | ast.Not | ast.Invert):
        return new.operand
    elif isinstance(new, ast.IfExp):
        new.body, new.orelse = new.orelse, new.body
    elif isinstance(new, ast.Constant) and isinstance(new.value, bool):
        new.value = not new.value
    elif isinstance(new, ast.Constant) and isinstance(new.value, int | float):
        new.value = new.value + 1 if isinstance(new.value, int) else new.value * 1.5 + 0.1
    else:
        return None
    return new


def _put(tree: ast.Module, old: ast.AST, new: ast.expr) -> None:
    class Putting(ast.NodeTransformer):
        def visit(self, node: ast.AST) -> ast.AST:
            return new if node is old else self.generic_visit(node)

    Putting().visit(tree)


class _Loader(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Imports the mutated module."""

    def __init__(self, mutant: Mutant) -> None:
        self._mutant = mutant
        parts = mutant.path.relative_to(ROOT).with_suffix("").parts
        self._name = ".".join(parts)

    def find_spec(
        self,
        name: str,
        path: Sequence[str] | None,
        target: types.ModuleType | None = None,
        /,
    ) -> importlib.machinery.ModuleSpec | None:
        if name != self._name:
            return None
        return importlib.util.spec_from_file_location(name, self._mutant.path, loader=self)

    def exec_module(self, module: types.ModuleType) -> None:
        code = compile(self._mutant.tree, str(self._mutant.path), "exec")
        exec(code, vars(module))


def survives(mutant: Mutant, tests: dict[str, float]) -> bool:
    """Returns whether tests pass, given with the seconds that they take without a mutant."""
    seconds = 60 + 3 * sum(tests.values())
    return covering.passes(tests, seconds, lambda: sys.meta_path.insert(0, _Loader(mutant)))


def interval(killed: int, count: int) -> tuple[float, float]:
    """Returns the 95% interval of a share (Wilson, JASA 22 (1927) 209)."""
    z, share = 1.96, killed / count
    middle = share + z**2 / (2 * count)
    half = z * (share * (1 - share) / count + z**2 / (4 * count**2)) ** 0.5
    return (middle - half) / (1 + z**2 / count), (middle + half) / (1 + z**2 / count)


def main() -> int:
    """Prints the survivors and a summary."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--mutants", type=int, default=150, help="how many are drawn (150)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--files", default="*.py", help="pattern of names of files (*.py)")
    parser.add_argument("--tests", nargs="*", default=TESTS)
    parser.add_argument("--part", default="1/1", help="which part of them is tried, as in 2/10")
    parser.add_argument("--lines", help="file that keeps which tests execute which lines")
    given = parser.parse_args()
    paths = [p for room in ROOMS for p in sorted((ROOT / "amaml_tf" / room).glob(given.files))]
    every = [mutant for path in paths for mutant in mutants_of(path)]
    drawn = random.Random(given.seed).sample(every, min(given.mutants, len(every)))
    part, parts = map(int, given.part.split("/"))
    drawn = drawn[part - 1 :: parts]
    covered = covering.covered(given.tests, paths, given.lines)
    print(f"{len(covered.seconds)} tests take {sum(covered.seconds.values()):.0f} s", flush=True)
    alive = 0
    for number, mutant in enumerate(drawn, start=1):
        if survives(mutant, covered.by(mutant.path, mutant.lines)):
            alive += 1
            where = f"{mutant.path.relative_to(ROOT)}:{mutant.lines[0]}"
            print(f"survived: {where}: {mutant.what}", flush=True)
        print(f"{number - alive} of {number} killed", file=sys.stderr, flush=True)
    killed = len(drawn) - alive
    low, high = interval(killed, len(drawn))
    print(
        f"{killed} of {len(drawn)} mutants killed ({killed / len(drawn):.0%}; 95% interval "
        f"{low:.0%} to {high:.0%}), drawn from {len(every)} with seed {given.seed}"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
