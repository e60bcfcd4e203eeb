"""The training loop, which resumes a stopped run from its newest checkpoint."""

from __future__ import annotations

import pathlib
from collections.abc import Callable, Collection, Mapping, Sequence

import keras

from amaml_tf.aliases import PathLike
from amaml_tf.errors import SaveError
from amaml_tf.learner.meta_learner import MetaLearner
from amaml_tf.tasks.base import TaskFamily
from amaml_tf.tasks.late_errors import unwrapped
from amaml_tf.training import stopping
from amaml_tf.training.between import SaveCheckpoints
from amaml_tf.training.checkpoints import Checkpoints
from amaml_tf.training.dropped import DROPPED_FILE, WatchDroppedTasks
from amaml_tf.training.logs import LOG_FILE, CsvLog
from amaml_tf.training.rows import Rows
from amaml_tf.training.saving import Saving
from amaml_tf.training.skipping import skipping
from amaml_tf.training.tensorboard import TENSORBOARD_FOLDER, TensorBoard
from amaml_tf.training.validation import Validation
from amaml_tf.training.workers import Workers


def train(
    learner: MetaLearner,
    family: TaskFamily,
    workdir: PathLike,
    *,
    num_meta_steps: int,
    meta_batch_size: int,
    seed: int = 0,
    log_every: int = 100,
    checkpoint_every: int = 500,
    verify_checkpoints: bool | None = None,
    max_dropped: float = 0.5,
    skip_episodes: Collection[int] = (),
    on_save_failure: str = "stop",
    validate: Callable[[], Mapping[str, float]] | None = None,
    validate_every: int = 500,
    keep_best: bool = True,
    patience: int | None = None,
    callbacks: Sequence[keras.callbacks.Callback] = (),
) -> int:
    """Trains until `num_meta_steps` meta-steps are done, from the newest checkpoint in `workdir`.

    A run that was stopped and resumed ends with the same numbers as an uninterrupted one, if the
    device always computes the same sums in the same way.

    SIGINT, SIGTERM and SIGHUP stop it after the meta-step at work, with a checkpoint; in the main
    thread only, where Python receives signals.

    If the learner is distributed (`MetaLearner.distribute`), every worker calls this. The chief
    alone writes to `workdir`, and a signal to one of the workers stops all, after the next
    meta-step.

    Args:
        learner: a compiled learner.
        family: the task family to train on.
        workdir: folder for checkpoints, `log.csv` and TensorBoard's files; created if needed.
        num_meta_steps: total number of meta-steps, with those of a stopped run.
        meta_batch_size: tasks per meta-step.
        seed: seed of the stream of episodes.
        log_every: meta-steps between two entries of the logs; each entry is a mean over them.
        checkpoint_every: meta-steps between two checkpoints.
        verify_checkpoints: whether to read each checkpoint back; None: up to 256 MiB.
        max_dropped: with `on_failure="drop"`, the largest fraction of dropped tasks over the last
            100 meta-steps.
        skip_episodes: numbers of episodes, from 0, to go round: another episode of the same batch
            is taken twice.
        on_save_failure: what follows if a checkpoint or a row of a log cannot be written: "stop"
            the run, or "warn", go on and try again.
        validate: gives the means of query loss (as `loss`) and metrics on validation tasks, which
            are written to `validation.csv`; None: no validation.
        validate_every: meta-steps between two validations.
        keep_best: whether to keep the checkpoint of the lowest validation loss beside the newest.
        patience: stop after so many validations without a new best; None: never.
        callbacks: further Keras callbacks; an epoch is the stretch between two log entries.

    Returns:
        Number of meta-steps taken in this call.

    Raises:
        AdaptationError: a task or a meta-update fails, and the learner does not drop such tasks.
        TrainingError: too many tasks are dropped, or the family has no more episodes.
        SaveError: a checkpoint cannot be written, or there is no room for two.
        UsageError: another process trains in `workdir`, or no checkpoint there is whole.
        Stopped: a `KeyboardInterrupt`, after a checkpoint is saved; its text says how to resume.
    """
    saving, workers = Saving(on_save_failure), Workers(learner.replicas)
    with workers.at_work(workdir) as folder, unwrapped():
        checkpoints = Checkpoints(learner, folder, verify=verify_checkpoints)
        first = workers.begin(checkpoints, num_meta_steps, meta_batch_size, seed, log_every)
        saving.require_room(folder, checkpoints.size)
        guards = _guards(learner, checkpoints, folder, saving, max_dropped)
        rows = Rows(checkpoints, num_meta_steps, _logs(checkpoints, folder, saving))
        validation = validate and Validation(
            validate, checkpoints, folder, saving, validate_every, keep_best, patience, workers
        )
        stops = _StopAtSignals(workers)
        saves = SaveCheckpoints(checkpoints, checkpoint_every, saving), stops
        every = [*guards, *callbacks, rows, *rows.logs, *filter(None, [validation]), *saves]
        try:
            is_enough = validation.catch_up() if validation else False
            while (step := checkpoints.step) < num_meta_steps and not is_enough:
                stream = family.episodes("train", batch_size=meta_batch_size, seed=seed, start=step)
                learner.fit(
                    skipping(stream, skip_episodes, meta_batch_size, step),
                    **_epochs(step, num_meta_steps, log_every),
                    callbacks=every,
                    verbose=workers.verbosity,
                )
                is_enough = learner.stop_training
            if checkpoints.step > first:
                checkpoints.save()
        except KeyboardInterrupt:
            raise _stopped(checkpoints, first, num_meta_steps, stops, rows) from None
        return checkpoints.step - first


def _logs(
    checkpoints: Checkpoints, folder: pathlib.Path, saving: Saving
) -> list[keras.callbacks.Callback]:
    return [
        CsvLog(checkpoints, folder / LOG_FILE, saving),
        TensorBoard(checkpoints, folder / TENSORBOARD_FOLDER, saving),
    ]


def _guards(
    learner: MetaLearner,
    checkpoints: Checkpoints,
    folder: pathlib.Path,
    saving: Saving,
    max_dropped: float,
) -> list[keras.callbacks.Callback]:
    """Returns what comes before callbacks of the user's, which may stop the run."""
    guards: list[keras.callbacks.Callback] = [_NothingLost()]
    if learner.on_failure == "drop":
        path = folder / DROPPED_FILE
        guards.append(WatchDroppedTasks(checkpoints, path, max_dropped, saving))
    return guards


class _NothingLost(keras.callbacks.Callback):
    """Comes first, so that nothing is written after a stop that was lost."""

    def on_train_batch_end(self, batch: int, logs: dict[str, float] | None = None) -> None:
        stopping.raise_if_lost()


class _StopAtSignals(keras.callbacks.Callback):
    """Stops between two meta-steps, after the logs of the last one are written.

    Before the first one there is nothing to wait for.
    """

    def __init__(self, workers: Workers) -> None:
        super().__init__()
        self.workers = workers
        #: Whether a meta-step has come to its end, its logs included, since the run was begun.
        self.has_waited = False

    def on_train_batch_begin(self, batch: int, logs: dict[str, float] | None = None) -> None:
        self.workers.announce()

    def on_train_batch_end(self, batch: int, logs: dict[str, float] | None = None) -> None:
        stopping.hold()
        self.has_waited = True
        if batch + 1 != self.params["steps"]:
            self._stop_if_asked()

    def on_epoch_end(self, epoch: int, logs: dict[str, float] | None = None) -> None:
        self._stop_if_asked()

    def _stop_if_asked(self) -> None:
        if self.workers.signal() is not None:
            raise KeyboardInterrupt


def _stopped(
    checkpoints: Checkpoints,
    first: int,
    num_meta_steps: int,
    stops: _StopAtSignals,
    rows: Rows,
) -> stopping.Stopped:
    """Saves, and returns what says so.

    A first meta-step that was stopped before its logs were written is not saved, but made again.
    """
    stopping.hold()
    stopping.received()
    number = stops.workers.signal()
    step = checkpoints.step if stops.has_waited else first
    reached = f"{stopping.by_what(number)} after meta-step {step} of {num_meta_steps}"
    if step == 0:
        reached = f"{stopping.by_what(number)} before the first meta-step, with nothing to save"
    elif step > first:
        try:
            rows.end()
            checkpoints.save()
            reached += ", which is saved"
        except SaveError as error:
            reached += f", which is not saved ({error})"
    text = f"{reached}; run the same command again to go on."
    return stopping.Stopped(text) if number is None else stopping.Stopped(text, number)


def _epochs(step: int, num_meta_steps: int, log_every: int) -> dict[str, int]:
    """Returns the arguments of the next call of `fit`: whole epochs, or the rest of one."""
    epoch, done = divmod(step, log_every)
    whole = (num_meta_steps - step) // log_every
    if done or not whole:
        length = min(log_every - done, num_meta_steps - step)
        return {"initial_epoch": epoch, "epochs": epoch + 1, "steps_per_epoch": length}
    return {"initial_epoch": epoch, "epochs": epoch + whole, "steps_per_epoch": log_every}
