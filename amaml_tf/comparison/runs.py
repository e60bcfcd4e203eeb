"""One run of a comparison: training with pauses to measure, and a file for the result."""

from __future__ import annotations

import csv
import dataclasses
import functools
import gc
import json
import math
import pathlib
import time
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from amaml_tf import tasks
from amaml_tf.comparison.clock import Clock
from amaml_tf.errors import AdaptationError, TrainingError, UsageError
from amaml_tf.evaluation import Evaluator
from amaml_tf.experiment import Experiment
from amaml_tf.experiment.factories import arguments_of
from amaml_tf.files import write_atomically
from amaml_tf.learner.meta_learner import MetaLearner
from amaml_tf.training import LOG_FILE, Checkpoints, train
from amaml_tf.user_files import read_json

RESULT_FILE = "result.json"

# The place of the data does not change the result.
_NO_MATTER = ("data_dir", "download")


@dataclasses.dataclass(frozen=True)
class Run:
    """What to train, for how long, and what to measure.

    Attributes:
        name: its folder inside the comparison's folder.
        settings: all fields of its Experiment. Training ends after `num_meta_steps`.
        budget_seconds: training ends after this many seconds, if that is earlier; None: no limit.
        decay: whether the meta learning rate falls to 0 along a cosine over `budget_seconds`.
        curve_points: how many times to pause during training and measure on test episodes.
        num_curve_episodes: number of episodes each time.
    """

    name: str
    settings: dict[str, Any]
    budget_seconds: float | None = None
    decay: bool = False
    curve_points: int = 0
    num_curve_episodes: int = 20

    def experiment(self, kind: type[Experiment] = Experiment) -> Experiment:
        """Returns the settings as an experiment."""
        return kind.from_values(self.settings)

    def identity(self) -> dict[str, Any]:
        """Returns everything that the result depends on, as JSON values."""
        values = json.loads(json.dumps(dataclasses.asdict(self)))
        for name in _NO_MATTER:
            values["settings"].pop(name, None)
        return values


def result_of(run: Run, folder: pathlib.Path) -> dict[str, Any] | None:
    """Returns the result of a finished run, or None if the run is not finished.

    Raises:
        UsageError: a run of this name was done with other settings.
    """
    path = folder / run.name / RESULT_FILE
    if not path.is_file():
        return None
    result = read_json(path, "the result of a run")
    if not isinstance(result, dict) or "settings" not in (result.get("run") or {}):
        raise UsageError(
            f"Expected the result of a run, got {path} with another structure; remove it, and the "
            "run is done again."
        )
    old, new = result["run"], run.identity()
    flat_old, flat_new = old | old["settings"], new | new["settings"]
    differing = [n for n in flat_new if n != "settings" and flat_new[n] != flat_old.get(n)]
    if differing:
        raise UsageError(
            f"Expected the settings of the results in {folder / run.name}, got other values of "
            f"{', '.join(differing)}; pass the old ones, or another --output."
        )
    return result


def execute(run: Run, folder: pathlib.Path, kind: type[Experiment] = Experiment) -> dict[str, Any]:
    """Does a run, from its newest checkpoint, and writes and returns its result.

    A run also has a result if its flow fails, if its numbers become infinite or NaN, or if memory
    runs out: the reason, under "failed".
    """
    workdir = folder / run.name
    keras.backend.clear_session()  # frees the graphs of earlier runs
    gc.collect()
    experiment = run.experiment(kind)
    experiment.require_free_or_own(workdir)
    experiment.write(workdir)
    family = _family_of(experiment)
    try:
        found = _train_and_measure(run, experiment, family, workdir)
    except _FAILURES as error:
        found = {"failed": f"{error}".strip().split("\n")[0][:500]}
    result = {"run": run.identity(), **found}
    write_atomically(workdir / RESULT_FILE, json.dumps(result, indent=1) + "\n")
    return result


class _NotFiniteError(Exception):
    """Weights or losses became infinite or NaN in training."""


_FAILURES = (AdaptationError, TrainingError, _NotFiniteError, tf.errors.ResourceExhaustedError)


def _train_and_measure(
    run: Run, experiment: Experiment, family: tasks.TaskFamily, workdir: pathlib.Path
) -> dict[str, Any]:
    learner = experiment.make_learner(family)
    clock = Clock(workdir, Checkpoints(learner, workdir).restore())
    if run.decay and run.budget_seconds is not None:
        clock.schedule = keras.optimizers.schedules.CosineDecay(
            experiment.meta_learning_rate, run.budget_seconds
        )
    path = workdir / "curve.json"
    curve = read_json(path, "the curve of a run") if path.is_file() else []
    if not isinstance(curve, list):
        raise UsageError(
            f"Expected the curve of a run, got {path} with another structure; remove {workdir}, "
            "so that the run is made anew."
        )
    measured = functools.partial(
        measure, experiment, family, experiment.make_evaluator(learner, family)
    )
    for number, share in enumerate(_shares(run.curve_points)):
        _train(run, experiment, family, learner, clock, workdir, share)
        if number >= len(curve) and run.curve_points:
            seen = measured("test", run.num_curve_episodes)
            point = {"seconds": clock.seconds, "meta_steps": clock.step, "after": seen["after"]}
            curve.append(point)
            write_atomically(path, json.dumps(curve) + "\n")
    start = time.perf_counter()
    final = measured(experiment.eval_split)
    seconds = time.perf_counter() - start
    has_curve = bool(experiment.eval_steps or experiment.eval_times)
    for_stopping = has_curve and experiment.eval_split == "test"
    return {
        "meta_steps": clock.step,
        "seconds": clock.seconds,
        "first_step_seconds": clock.first_step_seconds,
        "evaluation_seconds": seconds,
        "training_gradient_evaluations": _mean_of_log(workdir, "gradient_evaluations"),
        "evaluation": final,
        # These choose how far to adapt.
        "validation": measured("validation") if for_stopping else None,
        "training_curve": curve,
    }


def _shares(count: int) -> list[float]:
    """Returns when to pause, as shares of the budget: each twice the one before, the last 1."""
    return [0.5**i for i in reversed(range(max(1, count)))]


def _train(
    run: Run,
    experiment: Experiment,
    family: tasks.TaskFamily,
    learner: MetaLearner,
    clock: Clock,
    workdir: pathlib.Path,
    share: float,
) -> None:
    """Trains until `share` of the budget is used."""
    in_time = run.budget_seconds is not None
    clock.limit = share * run.budget_seconds if run.budget_seconds is not None else math.inf
    last = experiment.num_meta_steps
    if clock.seconds >= clock.limit:
        return
    try:
        train(
            learner,
            family,
            workdir,
            num_meta_steps=last if in_time else max(1, round(share * last)),
            meta_batch_size=experiment.meta_batch_size,
            seed=experiment.seed,
            log_every=experiment.log_every,
            checkpoint_every=experiment.checkpoint_every,
            callbacks=[clock],
        )
    finally:
        clock.write()
    for variable in learner.model.trainable_variables:
        if not np.isfinite(variable.numpy()).all():
            raise _NotFiniteError(
                f"Weights were infinite or NaN after meta-step {clock.step}: training diverged."
            )


def measure(
    experiment: Experiment,
    family: tasks.TaskFamily,
    evaluator: Evaluator,
    split: str,
    num_episodes: int | None = None,
) -> dict[str, Any]:
    """Returns an evaluation with the experiment's settings, on `num_episodes` episodes if given."""
    try:
        found = experiment.measure(evaluator, family, split, num_episodes)
    except UsageError as error:
        # The settings were checked before, so fewer than two episodes had finite losses.
        raise _NotFiniteError(f"No finite losses to average. {error}") from error
    return dataclasses.asdict(found)


def _family_of(experiment: Experiment) -> tasks.TaskFamily:
    """Returns the task family, kept from run to run because its data can be slow to load."""
    experiment.prepare()
    factory = tasks.REGISTRY.get(experiment.task)
    names = {*arguments_of(factory), "dataset", "data_dir"} if factory else set()
    values = dataclasses.asdict(experiment)
    same = {name: values[name] for name in names & set(values)} | {"task": experiment.task}
    key = json.dumps(same, sort_keys=True)
    if key not in _FAMILIES:
        _FAMILIES.clear()
        _FAMILIES[key] = experiment.make_family()
    return _FAMILIES[key]


_FAMILIES: dict[str, tasks.TaskFamily] = {}


def _mean_of_log(workdir: pathlib.Path, column: str) -> float | None:
    """Returns the mean of a column of the training log."""
    with (workdir / LOG_FILE).open(newline="", encoding="utf-8") as file:
        values = [float(row[column]) for row in csv.DictReader(file) if row.get(column)]
    return sum(values) / len(values) if values else None
