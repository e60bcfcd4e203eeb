"""`amaml-train`: learns an initialization from a family of tasks, and evaluates it.

    amaml-train --flagfile=configs/sinusoid.cfg --workdir=runs/sinusoid

Run again, the same command goes on where it was stopped. With --replay_episode=N it shows what
becomes of one episode of the training.
"""

from __future__ import annotations

import pathlib
from collections.abc import Callable, Mapping

import keras
from absl.flags import DEFINE_integer, adopt_module_key_flags

from amaml_tf.commands import distributed, flags, running
from amaml_tf.commands.replay import replay_episode
from amaml_tf.commands.reporting import files_of_evaluation, is_evaluated, report_evaluation
from amaml_tf.commands.run_statistics import STATISTICS_FILE, keep_statistics
from amaml_tf.distribution import Replicas
from amaml_tf.errors import UsageError
from amaml_tf.evaluation import EVALUATION_FILE
from amaml_tf.experiment import CONFIG_FILE, Experiment
from amaml_tf.experiment.safeguards import MOST_EPISODES
from amaml_tf.experiment.task_file import TASK_FILE, write_task
from amaml_tf.files import sweep
from amaml_tf.learner.meta_learner import MetaLearner
from amaml_tf.tasks import TaskFamily
from amaml_tf.training import has_checkpoint, locked, stopping, train
from amaml_tf.training.profiling import Profile
from amaml_tf.training.tensorboard import TENSORBOARD_FOLDER

adopt_module_key_flags(distributed)

_REPLAY_EPISODE = DEFINE_integer(
    "replay_episode",
    None,
    "Adapt to this one training episode, as dropped.csv numbers them, and train nothing.",
    lower_bound=0,
    upper_bound=MOST_EPISODES,
)

_PROFILE = DEFINE_integer(
    "profile",
    None,
    "Write a trace of so many meta-steps to WORKDIR/tensorboard, for TensorBoard's profiler.",
    lower_bound=1,
)


def main(kind: type[Experiment] = Experiment) -> None:
    """Trains as the flags say, then evaluates."""
    experiment, workdir = flags.read(kind), flags.workdir()
    if experiment.patience is not None and experiment.validate_every is None:
        raise UsageError(
            f"Expected --validate_every with --patience={experiment.patience}, got none; pass it."
        )
    experiment.prepare()
    with distributed.replicas(experiment) as replicas:
        _main(experiment, workdir if replicas is None else replicas.folder(workdir), replicas)


def _main(experiment: Experiment, workdir: pathlib.Path, replicas: Replicas | None) -> None:
    experiment.require_free_or_own(workdir)
    family = experiment.make_family()
    learner = experiment.make_learner(family)
    if _REPLAY_EPISODE.value is not None:
        replay_episode(experiment, family, learner, workdir, _REPLAY_EPISODE.value)
        return
    learner.distribute(replicas)
    with locked(workdir):
        experiment.require_free_or_own(workdir)  # another process may have been there first
        _train_and_evaluate(experiment, family, learner, workdir)


def _train_and_evaluate(
    experiment: Experiment, family: TaskFamily, learner: MetaLearner, workdir: pathlib.Path
) -> None:
    for path in (
        workdir / CONFIG_FILE,
        workdir / TASK_FILE,
        workdir / STATISTICS_FILE,
        *files_of_evaluation(workdir / EVALUATION_FILE),
    ):
        sweep(path)
    stopping.raise_if_lost()
    if has_checkpoint(workdir):
        print(f"Going on with the run in {workdir}.", flush=True)
    else:
        experiment.write(workdir)
    write_task(family, workdir)
    num_steps = train(
        learner,
        family,
        workdir,
        num_meta_steps=experiment.num_meta_steps,
        meta_batch_size=experiment.meta_batch_size,
        seed=experiment.seed,
        log_every=experiment.log_every,
        checkpoint_every=experiment.checkpoint_every,
        verify_checkpoints=experiment.verify_checkpoints,
        max_dropped=experiment.max_dropped,
        skip_episodes=experiment.skip_episodes or (),
        on_save_failure=experiment.on_save_failure,
        validate=_validation(experiment, family, learner),
        validate_every=experiment.validate_every or 1,
        keep_best=experiment.keep_best,
        patience=experiment.patience,
        callbacks=[_KeepSettings(experiment, workdir), *_profile(workdir)],
    )
    step = int(learner.optimizer.iterations)
    if not num_steps:
        print(
            f"The run in {workdir} is finished: {step} meta-steps are done. A larger "
            "--num_meta_steps or --patience goes on; amaml-evaluate evaluates again."
        )
    keep_statistics(experiment, family, learner, workdir)
    path = workdir / EVALUATION_FILE
    is_done = is_evaluated(path, step)
    if learner.replicas is not None:
        is_done = learner.replicas.of_chief(is_done)
    if not is_done:
        report_evaluation(experiment, family, learner, step, path)


def _validation(
    experiment: Experiment, family: TaskFamily, learner: MetaLearner
) -> Callable[[], Mapping[str, float]] | None:
    """Returns what measures the learner on validation tasks; None if that is not asked for."""
    if experiment.validate_every is None:
        return None
    family.require_split("validation")
    evaluator = experiment.make_evaluator(learner, family)

    def measured() -> dict[str, float]:
        count = experiment.num_validation_episodes
        found = experiment.measure(evaluator, family, "validation", count)
        return {name: estimate.mean for name, estimate in found.after.items()}

    return measured


def _profile(workdir: pathlib.Path) -> list[keras.callbacks.Callback]:
    if _PROFILE.value is None:
        return []
    return [Profile(workdir / TENSORBOARD_FOLDER, _PROFILE.value)]


class _KeepSettings(keras.callbacks.Callback):
    """Writes the settings once a meta-step was made with them, not when it is merely asked for."""

    def __init__(self, experiment: Experiment, workdir: pathlib.Path) -> None:
        super().__init__()
        self._experiment: Experiment | None = experiment
        self._workdir = workdir

    def on_train_batch_end(self, batch: int, logs: dict[str, float] | None = None) -> None:
        if self._experiment is not None:
            self._experiment.write(self._workdir)
            self._experiment = None


def run(kind: type[Experiment] = Experiment) -> None:
    """Entry point of the console command."""
    running.run(main, kind)
