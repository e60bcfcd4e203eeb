"""`amaml-evaluate`: measures a learned initialization on unseen tasks.

    amaml-evaluate --workdir=runs/sinusoid

The settings are those of the run; flags change what may differ, such as --num_eval_episodes,
--eval_seed, --final_time or --solver. A curve along the inner run, or along the steps of a Keras
optimizer from the learned initialization:

    amaml-evaluate --workdir=runs/sinusoid --eval_times=0.1,1,10
    amaml-evaluate --workdir=runs/sinusoid --eval_optimizer=adam --eval_steps=10,100,1000
"""

from __future__ import annotations

from absl.flags import DEFINE_string

from amaml_tf.commands import flags, running
from amaml_tf.commands.outputs import evaluation_file
from amaml_tf.commands.reporting import report_evaluation
from amaml_tf.evaluation import EVALUATION_FILE
from amaml_tf.experiment import Experiment
from amaml_tf.training import require_checkpoint, restore

_EVALUATION_FILE = DEFINE_string(
    "evaluation_file", None, f"JSON file for the numbers. Default: {EVALUATION_FILE} in --workdir."
)


def main(kind: type[Experiment] = Experiment) -> None:
    """Evaluates the newest checkpoint of a run."""
    experiment, workdir = flags.trained_experiment(kind), flags.workdir()
    path = evaluation_file(_EVALUATION_FILE.value or str(workdir / EVALUATION_FILE), workdir)
    require_checkpoint(workdir)  # before the data, which can take a while
    family = experiment.make_family()
    learner = experiment.make_learner(family)
    step = restore(learner, workdir)
    report_evaluation(experiment, family, learner, step, path)


def run(kind: type[Experiment] = Experiment) -> None:
    """Entry point of the console command."""
    running.run(main, kind)
