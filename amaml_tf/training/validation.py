"""Validation during training: the best checkpoint is kept, and a run can stop early."""

from __future__ import annotations

import csv
import math
import pathlib
from collections.abc import Callable, Iterable, Mapping, Sequence

from amaml_tf.aliases import PathLike
from amaml_tf.errors import UsageError
from amaml_tf.training import stopping
from amaml_tf.training.between import BetweenMetaSteps
from amaml_tf.training.checkpoints import Checkpoints
from amaml_tf.training.csv_rows import CsvRows
from amaml_tf.training.saving import Saving
from amaml_tf.training.workers import Workers

VALIDATION_FILE = "validation.csv"


class Validation(BetweenMetaSteps):
    """Measures on validation tasks, a row of `validation.csv` each time.

    The checkpoint with the lowest `loss` is the best. It is kept beside the newest ones.

    Args:
        measure: gives the means of query loss and metrics after adaptation, by name.
        checkpoints: of the run.
        workdir: folder of the run.
        saving: what follows if a file cannot be written.
        every: meta-steps between two validations.
        keep_best: whether to keep the best checkpoint.
        patience: the training stops after so many validations without a new best; None: never.
        workers: of the run; they measure at the same meta-steps. None: this process alone.
    """

    def __init__(
        self,
        measure: Callable[[], Mapping[str, float]],
        checkpoints: Checkpoints,
        workdir: PathLike,
        saving: Saving,
        every: int,
        keep_best: bool = True,
        patience: int | None = None,
        workers: Workers | None = None,
    ) -> None:
        super().__init__(checkpoints, every, saving)
        self._measure = measure
        self._path = pathlib.Path(workdir) / VALIDATION_FILE
        self._rows = CsvRows(self._path, checkpoints.step)
        self._workers = workers or Workers(None)
        self._losses = self._workers.of_chief(_losses(self._rows.read()))
        self._keep_best = keep_best
        self._patience = patience
        self._keep()
        if checkpoints.step not in self._losses:
            self._last = 0  # it was stopped, or killed, before it could be measured

    def is_enough(self) -> bool:
        """Returns whether the training has stopped early."""
        if self._patience is None or not self._losses:
            return False
        best = _best(self._losses)
        since = sum(step > best for step in self._losses) if best is not None else 0
        return since >= self._patience

    def act(self) -> None:
        if self._workers.signal() is not None:
            return  # it is made when the run goes on
        self._workers.release()  # a measurement may be stopped, for it is then made again
        found = self._measure()
        stopping.raise_if_lost()
        stopping.hold()
        step = self._checkpoints.step
        self._losses[step] = found["loss"]
        with self._saving.of(self._path):
            self._rows.append({"step": step, **found})
        if _best(self._losses) == step and self._keep_best:
            self._keep()
            with self._saving.of(self._checkpoints.folder.path):
                self._checkpoints.save()
        if self.is_enough() and self.model is not None:
            self.model.stop_training = True

    def catch_up(self) -> bool:
        """Measures at the checkpoint that a run goes on from, if that is due and was not done.

        Returns:
            Whether that is enough, as `is_enough`.
        """
        if self._checkpoints.step:
            self._act_if_due()
        return self.is_enough()

    def _keep(self) -> None:
        best = _best(self._losses)
        self._checkpoints.kept = {best} if self._keep_best and best is not None else set()


def best_step(workdir: PathLike, there: Sequence[int]) -> int:
    """Returns the meta-step of the best checkpoint of the run in `workdir`, by its validations.

    Args:
        workdir: folder of the run.
        there: meta-steps whose checkpoints are there.

    Raises:
        UsageError: none of these was validated.
    """
    path = pathlib.Path(workdir) / VALIDATION_FILE
    losses: dict[int, float] = {}
    if path.is_file():
        with path.open(newline="", encoding="utf-8-sig", errors="replace") as file:
            losses = _losses(csv.DictReader(file))
    best = _best({step: loss for step, loss in losses.items() if step in there})
    if best is None:
        raise UsageError(
            f"Expected validations in {path}, got none of a checkpoint that is there; train with "
            "--validate_every=N, or evaluate the newest checkpoint."
        )
    return best


def _losses(rows: Iterable[Mapping[str, str]]) -> dict[int, float]:
    try:
        return {int(row["step"]): float(row["loss"]) for row in rows}
    except (KeyError, TypeError, ValueError, csv.Error) as error:
        raise UsageError(
            f"Expected columns step and loss of numbers in {VALIDATION_FILE}, got {error}; put "
            "back the file as it was written, or remove it."
        ) from error


def _best(losses: Mapping[int, float]) -> int | None:
    finite = {step: loss for step, loss in losses.items() if math.isfinite(loss)}
    return min(finite, key=lambda step: (finite[step], step), default=None)
