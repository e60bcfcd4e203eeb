"""`amaml-evaluate`: measures a learned initialization on unseen tasks.

    amaml-evaluate --workdir=runs/sinusoid
    amaml-evaluate --workdir=runs/sinusoid --checkpoint=best

The settings are those of the run; flags change what may differ, such as --num_eval_episodes,
--eval_seed, --final_time or --solver. A curve along the inner run, or along the steps of a Keras
optimizer from the learned initialization:

    amaml-evaluate --workdir=runs/sinusoid --eval_times=0.1,1,10
    amaml-evaluate --workdir=runs/sinusoid --eval_optimizer=adam --eval_steps=10,100,1000
"""

from __future__ import annotations

import pathlib
import re

from absl.flags import DEFINE_string, adopt_module_key_flags

from amaml_tf.commands import distributed, flags, running
from amaml_tf.commands.outputs import evaluation_file
from amaml_tf.commands.reporting import report_evaluation
from amaml_tf.errors import UsageError
from amaml_tf.evaluation import EVALUATION_FILE
from amaml_tf.experiment import Experiment
from amaml_tf.training import require_checkpoint, restore
from amaml_tf.training.checkpoint_files import CheckpointFolder
from amaml_tf.training.validation import best_step

adopt_module_key_flags(distributed)

_EVALUATION_FILE = DEFINE_string(
    "evaluation_file",
    None,
    f"JSON file for the numbers. Default: {EVALUATION_FILE} in --workdir, or evaluation_best.json "
    "and the like with --checkpoint.",
)


_CHECKPOINT = DEFINE_string(
    "checkpoint",
    "newest",
    "Whose evaluation: newest, best (of the validations) or the number of a meta-step.",
)


def main(kind: type[Experiment] = Experiment) -> None:
    """Evaluates a checkpoint of a run."""
    experiment, workdir = flags.trained_experiment(kind), flags.workdir()
    asked, which = _CHECKPOINT.value, _which(workdir)
    name = EVALUATION_FILE if asked == "newest" else f"evaluation_{asked}.json"
    path = evaluation_file(_EVALUATION_FILE.value or str(workdir / name), workdir)
    require_checkpoint(workdir)  # before the data, which can take a while
    experiment.prepare()
    with distributed.replicas(experiment) as replicas:
        family = experiment.make_family()
        learner = experiment.make_learner(family)
        learner.distribute(replicas)
        step = restore(learner, workdir, which)
        if replicas is not None and not replicas.is_chief:
            path = replicas.folder(workdir) / path.name
        report_evaluation(experiment, family, learner, step, path)


def _which(workdir: pathlib.Path) -> int | str:
    """Returns "newest" or the meta-step that --checkpoint stands for."""
    asked = _CHECKPOINT.value
    if asked == "newest":
        return asked
    if asked == "best":
        return best_step(workdir, CheckpointFolder(workdir).steps())
    if not re.fullmatch("[0-9]{1,18}", asked):
        raise UsageError(
            f"Expected checkpoint to be newest, best or the number of a meta-step, got {asked!r}; "
            "pass one of these."
        )
    return int(asked)


def run(kind: type[Experiment] = Experiment) -> None:
    """Entry point of the console command."""
    running.run(main, kind)
