"""`amaml-train`: learns an initialization from a family of tasks, and evaluates it.

    amaml-train --flagfile=configs/sinusoid.cfg --workdir=runs/sinusoid

Run again, the same command goes on where it was stopped.
"""

from __future__ import annotations

from amaml_tf.commands import flags, running
from amaml_tf.commands.reporting import report_evaluation
from amaml_tf.evaluation import EVALUATION_FILE
from amaml_tf.experiment import Experiment
from amaml_tf.experiment.task_file import write_task
from amaml_tf.training import has_checkpoint, train


def main(kind: type[Experiment] = Experiment) -> None:
    """Trains as the flags say, then evaluates."""
    experiment, workdir = flags.read(kind), flags.workdir()
    experiment.require_free_or_own(workdir)
    family = experiment.make_family()
    learner = experiment.make_learner(family)
    experiment.write(workdir)
    write_task(family, workdir)
    if has_checkpoint(workdir):
        print(f"Going on with the run in {workdir}.", flush=True)
    num_steps = train(
        learner,
        family,
        workdir,
        num_meta_steps=experiment.num_meta_steps,
        meta_batch_size=experiment.meta_batch_size,
        seed=experiment.seed,
        log_every=experiment.log_every,
        checkpoint_every=experiment.checkpoint_every,
    )
    step = int(learner.optimizer.iterations)
    if not num_steps:
        print(
            f"The run in {workdir} is finished: {step} meta-steps are done. A larger "
            "--num_meta_steps goes on; amaml-evaluate evaluates again."
        )
    path = workdir / EVALUATION_FILE
    if num_steps or not path.exists():
        report_evaluation(experiment, family, learner, step, path)


def run(kind: type[Experiment] = Experiment) -> None:
    """Entry point of the console command."""
    running.run(main, kind)
