"""The stored statistics of batch normalization of a run, so that exports do not need its data."""

from __future__ import annotations

import pathlib

from amaml_tf.errors import UsageError
from amaml_tf.experiment import Experiment
from amaml_tf.learner.meta_learner import MetaLearner
from amaml_tf.saved_model.stored_statistics import NUM_TASKS, StoredStatistics, variables_of
from amaml_tf.tasks import TaskFamily

STATISTICS_FILE = "statistics.json"
_TASKS_AT_A_TIME = 8


def keep_statistics(
    experiment: Experiment, family: TaskFamily, learner: MetaLearner, workdir: pathlib.Path
) -> None:
    """Writes the statistics of the network as it is now to the folder of its run.

    Nothing is done for a network without batch normalization by the examples at hand.
    """
    step, path = int(learner.optimizer.iterations), workdir / STATISTICS_FILE
    if variables_of(learner) and StoredStatistics.read(path, step) is None:
        _gathered(experiment, family, learner).write(path, step)


def statistics_of_run(
    experiment: Experiment, learner: MetaLearner, workdir: pathlib.Path, step: int
) -> StoredStatistics | None:
    """Returns the statistics of a run after a meta-step, gathered anew if it has not kept them.

    Returns:
        The statistics; None for a network without batch normalization by the examples at hand.

    Raises:
        UsageError: the run has not kept them, and the data of its tasks is not there.
    """
    if not variables_of(learner):
        return None
    kept = StoredStatistics.read(workdir / STATISTICS_FILE, step)
    if kept is not None:
        return kept
    try:
        family = experiment.make_family()
    except UsageError as error:
        raise UsageError(
            f"Expected the statistics of batch normalization after meta-step {step} in "
            f"{workdir / STATISTICS_FILE}, which amaml-train writes at its end, or the data to "
            f"gather them from, got neither ({error}); end the run with amaml-train, or pass "
            "--data_dir."
        ) from error
    return _gathered(experiment, family, learner)


def _gathered(experiment: Experiment, family: TaskFamily, learner: MetaLearner) -> StoredStatistics:
    return StoredStatistics.gathered(
        learner,
        family.episodes(
            "train",
            batch_size=_TASKS_AT_A_TIME,
            seed=experiment.seed,
            num_batches=NUM_TASKS // _TASKS_AT_A_TIME,
        ),
    )
