"""The tables of all flags in docs/commands.md; `python tests/house/flag_tables.py` writes them."""

from __future__ import annotations

import re
from collections.abc import Iterator

from absl import flags
from rules import ROOT

from amaml_tf.commands import compare, evaluate, export, train
from amaml_tf.commands import flags as of_settings
from amaml_tf.comparison.plan import Plan
from amaml_tf.experiment import Experiment
from amaml_tf.experiment.declaration import IN_EVALUATION, ON_RESUMING, Setting, settings_of

DOCUMENT = ROOT / "docs" / "commands.md"
_BLOCK = re.compile(r"(<!-- `python tests/house/flag_tables.py` .*? -->\n).*?(<!-- the end)", re.S)
_MARKS = {IN_EVALUATION: "e", ON_RESUMING: "r"}
#: Settings whose choices are those of registries, which may grow.
_REGISTERED = ("task", "model", "algorithm", "solver", "adjoint_solver")
_OF_ALL = ("stop_within", "workdir", "method", "search", "output")
_TITLES = {
    "task": "Tasks",
    "model": "The network",
    "algorithm": "The algorithm",
    "flow": "The inner run",
    "solver": "The solver of the inner run",
    "": "The training, what keeps it safe, and its evaluation",
}


def tables() -> str:
    """Returns the tables, one for each owner of settings and one for each command."""
    return "\n".join(_lines())


def with_tables(document: str, text: str) -> str:
    """Returns the document with `text` as its tables."""
    return _BLOCK.sub(lambda found: f"{found[1]}{text}\n{found[2]}", document, count=1)


def _lines() -> Iterator[str]:
    yield ""
    yield "A run may be resumed with another value of a flag that has an `r`, and be evaluated or"
    yield "exported with another value of one that has an `r` or an `e`. `--help` lists the tasks,"
    yield "models, algorithms and solvers there are."
    settings = settings_of(Experiment).values()
    for owner, title in _TITLES.items():
        yield from ("", f"### {title}", "", "| flag | | default | meaning |", "|---|---|---|---|")
        yield from (_of_setting(each) for each in settings if each.of == owner)
    yield from ("", "### Flags of one command", "", "| flag | of | meaning |", "|---|---|---|")
    for module in (of_settings, train, evaluate, export, compare):
        of = "all" if module is of_settings else f"`amaml-{module.__name__.rpartition('.')[2]}`"
        for flag in sorted(flags.FLAGS.flags_by_module_dict()[module.__name__], key=_name):
            if flag.name in _OF_ALL or module not in (of_settings, compare):
                yield f"| `--{flag.name}` | {of} | {_cell(flag.help)} |"
    for plan in settings_of(Plan).values():
        yield f"| `--{plan.name}` | `amaml-compare` | {_cell(plan.help())} |"
    yield ""


def _of_setting(each: Setting) -> str:
    default = "" if each.default is None else f"`{each.text(each.default)}`"
    meaning = _cell(each.meaning if each.name in _REGISTERED else each.help())
    return f"| `--{each.name}` | {_MARKS.get(each.may_change, '')} | {default} | {meaning} |"


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


def _name(flag: flags.Flag[object]) -> str:
    return flag.name


if __name__ == "__main__":
    text = DOCUMENT.read_text(encoding="utf-8")
    DOCUMENT.write_text(with_tables(text, tables()), encoding="utf-8")
