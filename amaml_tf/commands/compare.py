"""`amaml-compare`: compares algorithms on one family of tasks, with the same budget for each.

    amaml-compare --flagfile=configs/compare/alpine_50.cfg --output=FOLDER

Flags of `amaml-train` are the settings that all methods share; each method has its own beside them:

    --method="MAML: algorithm=maml,num_steps=5,search.step_size=0.01|0.1"

An empty value (`rtol=`) leaves a setting to its default, and + stands between the items of a list
(`hidden_units=32+32`). --search and search.NAME name values to choose from: every combination is
trained with one seed and measured on the validation split, and the best goes on to training with
all seeds and to the test split. Every finished run is a file; the same command goes on where it
was stopped.
"""

from __future__ import annotations

import pathlib

from absl.flags import DEFINE_multi_string, DEFINE_string

from amaml_tf.commands import flags, running
from amaml_tf.comparison.comparison import Comparison
from amaml_tf.comparison.methods import parse_methods
from amaml_tf.comparison.outcome import summary
from amaml_tf.comparison.plan import Plan
from amaml_tf.comparison.report import write_report
from amaml_tf.comparison.workers import crew, serve
from amaml_tf.errors import UsageError
from amaml_tf.experiment import Experiment
from amaml_tf.provenance import provenance
from amaml_tf.user_files import user_path

_METHOD = DEFINE_multi_string("method", [], 'A method, "LABEL: NAME=VALUE,...".')
_SEARCH = DEFINE_multi_string("search", [], "Values to try, NAME=VALUE,VALUE,...")
_OUTPUT = DEFINE_string("output", None, "Folder for runs, table, numbers and figures.")
_WORKER = DEFINE_string("worker", None, "Used by the program itself: does runs in FOLDER.")

flags.define(Plan)


def main(kind: type[Experiment] = Experiment) -> None:
    """Compares as the flags say, or serves as a worker."""
    if _WORKER.value:
        serve(pathlib.Path(_WORKER.value), kind)
        return
    folder = output()
    plan = flags.read(Plan)
    methods = parse_methods(_METHOD.value, _SEARCH.value, kind)
    comparison = Comparison(flags.read(kind), methods, plan, folder)
    comparison.check()
    folder.mkdir(parents=True, exist_ok=True)
    with crew(folder, plan.parallel, kind) as doer:
        outcomes = comparison.do(doer)
    metric = comparison.metric(outcomes)
    write_report(folder, outcomes, metric, provenance("amaml-compare"))
    for outcome in outcomes:
        spreads = summary(outcome, metric)
        text = f"{spreads['after'].mean:.4f}" if spreads else "failed"
        print(f"{outcome.method.label:24} {metric} {text}")
    print(f"Written to {folder}/table.md, results.json, results.csv and figures.", flush=True)


def output() -> pathlib.Path:
    """Returns the folder that --output names.

    Raises:
        UsageError: there is no such flag.
    """
    if not _OUTPUT.value:
        raise UsageError("Expected --output, a folder for the results, got none; pass it.")
    return user_path(_OUTPUT.value)


def run(kind: type[Experiment] = Experiment) -> None:
    """Entry point of the console command."""
    running.run(main, kind)
