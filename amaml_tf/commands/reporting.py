"""How a command tells what an evaluation found: a table, files and a figure."""

from __future__ import annotations

import dataclasses
import json
import pathlib
from collections.abc import Mapping
from typing import Any

from amaml_tf import plots
from amaml_tf.evaluation import Evaluation
from amaml_tf.experiment import Experiment
from amaml_tf.learner.meta_learner import MetaLearner
from amaml_tf.tasks import TaskFamily
from amaml_tf.training import stopping


def report_evaluation(
    settings: Experiment, family: TaskFamily, learner: MetaLearner, step: int, path: pathlib.Path
) -> Evaluation:
    """Evaluates as `settings` say, prints the table and writes the numbers to `path`."""
    evaluation = settings.measure(settings.make_evaluator(learner, family), family)
    stopping.raise_if_lost()
    print(f"\nUnseen tasks ({settings.eval_split} split) after meta-step {step}:")
    print(evaluation.table())
    path.parent.mkdir(parents=True, exist_ok=True)
    if settings.eval_times or settings.eval_steps:
        _draw(evaluation, settings.algorithm, path.with_suffix(".png"))
    evaluation.write(path, meta_step=step, settings=dataclasses.asdict(settings))
    print(f"Written to {path}.", flush=True)
    return evaluation


def files_of_evaluation(path: pathlib.Path) -> tuple[pathlib.Path, ...]:
    """Returns the files that `report_evaluation` writes: numbers, and perhaps a figure."""
    return path, path.with_suffix(".csv"), path.with_suffix(".png")


def is_evaluated(path: pathlib.Path, step: int) -> bool:
    """Returns whether the file `path` is the evaluation of this meta-step."""
    found = stored_evaluation(path)
    return found is not None and found["meta_step"] == step


def stored_evaluation(path: pathlib.Path) -> Mapping[str, Any] | None:
    """Returns the numbers of an evaluation; None if there are none, or no whole ones.

    It is then as if nothing had been evaluated: `amaml-evaluate` writes the file anew.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        whole = {"meta_step", "unit", "settings", "before", "after"} <= set(found)
        return found if whole and isinstance(found["settings"], dict) else None
    except (OSError, RecursionError, TypeError, ValueError):
        return None


def _draw(evaluation: Evaluation, name: str, path: pathlib.Path) -> None:
    """Draws the curve of the family's own metric, or of the loss if there is none."""
    measure = list(evaluation.after)[-1]
    curve = [
        (point.at, estimate.mean, estimate.half_width)
        for point in evaluation.curve
        for estimate in (point.measures[measure],)
    ]
    xlabel = {"time": "inner time", "step": "steps"}[evaluation.unit]
    plots.plot_curves({name: curve}, path, xlabel=xlabel, ylabel=measure)
