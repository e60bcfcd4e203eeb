"""`amaml-export`: writes the initialization that a run has learned as a SavedModel.

    amaml-export --workdir=runs/sinusoid --export_dir=exports/sinusoid
    amaml-export --workdir=runs/sinusoid --export_dir=exports/sinusoid --lite --onnx
    amaml-export --describe=exports/sinusoid

The settings are those of the run; flags change how the export adapts, such as --final_time or
--solver. The folder of the run is enough: its data set is not needed.
"""

from __future__ import annotations

import csv
import dataclasses
import math
import pathlib
from collections.abc import Mapping
from typing import Any

from absl.flags import DEFINE_bool, DEFINE_integer, DEFINE_list, DEFINE_string

from amaml_tf.commands import flags, running
from amaml_tf.commands.outputs import export_folder
from amaml_tf.commands.reporting import stored_evaluation
from amaml_tf.commands.run_statistics import statistics_of_run
from amaml_tf.evaluation.results import EVALUATION_FILE
from amaml_tf.experiment import Experiment
from amaml_tf.experiment.declaration import settings_of
from amaml_tf.experiment.task_file import stored_task
from amaml_tf.learner.meta_learner import MetaLearner
from amaml_tf.saved_model import Bounds, describe, save_initialization
from amaml_tf.saved_model.bounds import default_bounds
from amaml_tf.tasks import TaskFamily
from amaml_tf.training import LOG_FILE, require_checkpoint, restore, stopping

_EXPORT_DIR = DEFINE_string(
    "export_dir", None, "Folder of the exported versions. Default: export in --workdir."
)
_VERSION = DEFINE_integer(
    "version", None, "Number of the version to write. Default: one above the highest there."
)
_KEEP_VERSIONS = DEFINE_integer(
    "keep_versions", None, "How many versions to keep, the highest ones. Default: all."
)
_RAW_UNITS = DEFINE_bool(
    "raw_units",
    True,
    "Requests and answers are in the task's own units (pixels from 0 to 255, ratings of items), "
    "not in those of the network.",
)
_CLASS_NAMES = DEFINE_list(
    "class_names",
    None,
    "Names of the classes, in the order of their labels: answers then have probabilities and "
    "classes. Default: answers have the network's outputs alone.",
)
_MAX_GRADIENT_EVALUATIONS = DEFINE_integer(
    "max_gradient_evaluations",
    None,
    "Bound of a request. Default: ten times what all but 1% of the adaptations in the run's "
    "evaluation took.",
)
_MAX_SUPPORT_ROWS = DEFINE_integer(
    "max_support_rows", None, "Bound of a request. Default: ten times the rows of the run's tasks."
)
_MAX_QUERY_ROWS = DEFINE_integer(
    "max_query_rows",
    None,
    "Bound of a request. Default: ten times the rows of the run's tasks, and at least 1,000.",
)
_LITE = DEFINE_bool(
    "lite",
    False,
    "Also write assets.extra/initialization.tflite, which adapts on a phone. It takes as many "
    "support examples as the run's tasks of testing have.",
)
_ONNX = DEFINE_bool(
    "onnx",
    False,
    "Also write assets.extra/serving_default.onnx and predict_with.onnx, which predict wherever "
    "ONNX runs. Needs the package tf2onnx.",
)
_DESCRIBE = DEFINE_string(
    "describe", None, "Print what the export in this folder is, and write nothing."
)


def main(kind: type[Experiment] = Experiment) -> None:
    """Exports the newest checkpoint of a run."""
    if _DESCRIBE.value is not None:
        print(describe(_DESCRIBE.value))
        return
    experiment, workdir = _exported_experiment(kind), flags.workdir()
    folder = export_folder(_EXPORT_DIR.value or str(workdir / "export"), workdir)
    require_checkpoint(workdir)  # before the data, which can take a while
    experiment.prepare()
    family = stored_task(workdir) or experiment.make_family()
    learner = experiment.make_learner(family)
    step = restore(learner, workdir)
    statistics = statistics_of_run(experiment, learner, workdir, step)
    evaluation = _evaluation_of(experiment, workdir, step)
    stopping.raise_if_lost()
    written = save_initialization(
        learner,
        folder,
        _VERSION.value,
        units=family.units if _RAW_UNITS.value else None,
        class_names=_CLASS_NAMES.value or (),
        bounds=_bounds(learner, family, _evaluations(kind.read(workdir), experiment, workdir)),
        query_statistics=experiment.query_statistics,
        statistics_from=statistics,
        onnx=_ONNX.value,
        lite_support_rows=_rows(family, "test")[0] if _LITE.value else None,
        keep_versions=_KEEP_VERSIONS.value,
        about={
            "task": experiment.task,
            "settings": dataclasses.asdict(experiment),
            "meta_step": step,
            "evaluation": evaluation,
        },
    )
    print(f"Initialization after meta-step {step} written to {written}.")


def _exported_experiment(kind: type[Experiment]) -> Experiment:
    """Returns the experiment of the run, with the settings that flags give anew.

    Callers of a server do not expect that an answer depends on the other queries of a request, so a
    run that is evaluated so is exported so only if a flag says it.
    """
    experiment = flags.trained_experiment(kind)
    if flags.FLAGS["query_statistics"].present:
        return experiment
    return dataclasses.replace(experiment, query_statistics="support")


def _bounds(learner: MetaLearner, family: TaskFamily, evaluations: float | None) -> Bounds:
    """Returns the bounds that flags give, or those that follow from the run."""
    support, query = (
        max(_rows(family, split)[which] for split in ("train", "test")) for which in (0, 1)
    )
    given = {
        "max_gradient_evaluations": _MAX_GRADIENT_EVALUATIONS.value,
        "max_support_rows": _MAX_SUPPORT_ROWS.value,
        "max_query_rows": _MAX_QUERY_ROWS.value,
    }
    return dataclasses.replace(
        default_bounds(learner.algorithm, evaluations, support, query),
        **{name: value for name, value in given.items() if value is not None},
    )


def _rows(family: TaskFamily, split: str) -> tuple[int, int]:
    """Returns the numbers of support and query examples of a task."""
    classes = family.num_outputs if family.kind == "classification" else 1
    support, query = family.sizes(split)
    return support * classes, query * classes


def _evaluation_of(
    experiment: Experiment, workdir: pathlib.Path, step: int
) -> Mapping[str, Any] | None:
    """Returns the run's evaluation, if it is of this meta-step and of this way to adapt."""
    found = stored_evaluation(workdir / EVALUATION_FILE)
    if found is None:
        return None
    fits = found["meta_step"] == step and found["unit"] == "time"
    # Evaluations of earlier versions were transductive.
    fits &= found.get("query_statistics", "batch") in (experiment.query_statistics, "stored", None)
    if not fits or not _adapt_alike(found["settings"], dataclasses.asdict(experiment)):
        return None
    wanted = (
        "num_episodes",
        "query_statistics",
        "before",
        "after",
        "gradient_evaluations",
        "gradient_evaluations_p99",
    )
    return {name: found.get(name) for name in wanted}


def _evaluations(
    trained: Experiment, experiment: Experiment, workdir: pathlib.Path
) -> float | None:
    """Returns how many gradient evaluations adaptation took: in the evaluation, or in training."""
    found = stored_evaluation(workdir / EVALUATION_FILE)
    if found is not None and _adapt_alike(found["settings"], dataclasses.asdict(experiment)):
        percentile = found.get("gradient_evaluations_p99")
        if found["unit"] == "time" and isinstance(percentile, int):
            return float(percentile)
    if not _adapt_alike(dataclasses.asdict(trained), dataclasses.asdict(experiment)):
        return None
    try:
        with (workdir / LOG_FILE).open(newline="", encoding="utf-8") as rows:
            counts = [float(row["gradient_evaluations"]) for row in csv.DictReader(rows)]
    except (OSError, KeyError, TypeError, ValueError, csv.Error):
        return None  # no log, or one that another program has changed
    return max(filter(math.isfinite, counts), default=None)


def _adapt_alike(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Returns whether two experiments have the same inner run."""
    names = [n for n, s in settings_of(Experiment).items() if s.of in ("flow", "solver")]
    return all(one.get(name) == other.get(name) for name in names)


def run(kind: type[Experiment] = Experiment) -> None:
    """Entry point of the console command."""
    running.run(main, kind)
