"""How a command tells what an evaluation found: a table, files and a figure."""

from __future__ import annotations

import dataclasses
import pathlib

from amaml_tf import plots
from amaml_tf.evaluation import Evaluation
from amaml_tf.experiment import Experiment
from amaml_tf.learner.meta_learner import MetaLearner
from amaml_tf.tasks import TaskFamily


def report_evaluation(
    settings: Experiment, family: TaskFamily, learner: MetaLearner, step: int, path: pathlib.Path
) -> Evaluation:
    """Evaluates as `settings` say, prints the table and writes the numbers to `path`."""
    evaluation = settings.measure(settings.make_evaluator(learner, family), family)
    print(f"\nUnseen tasks ({settings.eval_split} split) after meta-step {step}:")
    print(evaluation.table())
    path.parent.mkdir(parents=True, exist_ok=True)
    evaluation.write(path, meta_step=step, settings=dataclasses.asdict(settings))
    if settings.eval_times or settings.eval_steps:
        _draw(evaluation, settings.algorithm, path.with_suffix(".png"))
    print(f"Written to {path}.", flush=True)
    return evaluation


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
