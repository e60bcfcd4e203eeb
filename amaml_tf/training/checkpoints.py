"""Saving and restoring the checkpoints of a run."""

from __future__ import annotations

from collections.abc import Iterator

import keras
import numpy as np
import tensorflow as tf

from amaml_tf.aliases import PathLike
from amaml_tf.errors import SaveError, TrainingError, UsageError
from amaml_tf.learner.meta_learner import MetaLearner
from amaml_tf.training import stopping
from amaml_tf.training.checkpoint_files import CheckpointFolder, DamagedError
from amaml_tf.training.telling import tell

#: Up to this size, in bytes, reading a checkpoint back takes less than a second.
_CHEAP = 2**28


class Checkpoints:
    """The checkpoints of a run, in `WORKDIR/checkpoints`.

    A checkpoint holds everything that the next meta-step depends on: the variables of the model
    (with seeds and stored statistics), of the optimizer (with the number of the meta-step) and of
    the algorithm. Episodes depend only on their number. If `save` is interrupted, the previous
    checkpoint remains.

    Args:
        learner: a compiled learner.
        workdir: folder of the run.
        max_to_keep: how many checkpoints to keep, the newest ones.
        verify: whether to read each checkpoint back after it is written; None: if it is cheap, for
            up to 256 MiB.
    """

    def __init__(
        self,
        learner: MetaLearner,
        workdir: PathLike,
        max_to_keep: int = 3,
        *,
        verify: bool | None = None,
    ) -> None:
        self.folder = CheckpointFolder(workdir)
        #: Meta-steps whose checkpoints are kept beside the newest ones.
        self.kept: set[int] = set()
        self._optimizer = learner.optimizer
        self._max_to_keep = max_to_keep
        self._saved: int | None = None
        trainable = [*learner.model.trainable_variables, *learner.algorithm_variables]
        self._trainable = {id(variable) for variable in trainable}
        if not self._optimizer.built:
            self._optimizer.build(trainable)
        # Lists in the order of creation: Keras's own names change from one process to the next.
        self._variables: dict[str, list[keras.Variable]] = {
            "model": learner.model.variables,
            "optimizer": self._optimizer.variables,
            "algorithm": learner.algorithm_variables,
        }
        self._checkpoint = tf.train.Checkpoint(
            **{kind: [each.value for each in found] for kind, found in self._variables.items()}
        )
        #: About how many bytes a checkpoint has.
        self.size = sum(each.value.numpy().nbytes for _, each in self._named())
        self._verify = self.size <= _CHEAP if verify is None else verify

    @property
    def step(self) -> int:
        """Number of meta-steps taken."""
        return int(self._optimizer.iterations)

    @property
    def variables(self) -> list[keras.Variable]:
        """All variables that a checkpoint holds."""
        return [variable for _, variable in self._named()]

    def save(self) -> None:
        """Writes a checkpoint of the learner in its current state, unless it is written already.

        Raises:
            SaveError: it cannot be written. The checkpoints there are untouched.
            TrainingError: the trainable variables are not finite.
            Stopped: a signal came, and it is unknown what was computed since.
        """
        stopping.raise_if_lost()
        step = self.step
        if step == self._saved:
            return
        self._require_finite_variables()
        count = sum(1 for _ in self._named())
        try:
            self.folder.write(step, self._checkpoint, count if self._verify else None)
            self._saved = step
            self.folder.keep_only({*self.folder.steps()[-self._max_to_keep :], *self.kept, step})
        except (OSError, tf.errors.OpError, DamagedError) as error:
            raise SaveError(
                f"Expected to save meta-step {step} in {self.folder.path}, got: {_reason(error)}; "
                f"{self._what_is_there()} Make room there or let this user write there, and run "
                "the same command again to go on."
            ) from error

    def restore(self, which: int | str = "newest") -> int:
        """Restores the newest whole checkpoint, if there is one, and changes no file.

        Args:
            which: "newest", or the number of a meta-step.

        Returns:
            The number of the checkpoint's meta-step; that of the learner if there is none.

        Raises:
            UsageError: all checkpoints are damaged, the one asked for is damaged or not there, or
                it is of another learner.
        """
        steps = self.folder.steps()
        if which == "newest":
            return self._restore_newest(steps)[0]
        if which not in steps:
            there = ", ".join(map(str, steps)) or "none"
            raise UsageError(
                f"Expected a checkpoint of meta-step {which} in {self.folder.path}, got those of "
                f"{there}; pass one of these."
            )
        try:
            self._assign(int(which), self._read(int(which)))
        except DamagedError as error:
            raise UsageError(
                f"Expected a whole checkpoint of meta-step {which} in {self.folder.path}, got a "
                f"damaged one: {error}; pass another."
            ) from error
        return self.step

    def resume(self) -> int:
        """Restores the newest whole checkpoint and puts the folder in order.

        Damaged checkpoints are set aside, in `checkpoints/damaged`, and what a kill left behind is
        removed. Call this only while no other process trains there.

        Returns:
            The number of its meta-step, 0 if there is none.

        Raises:
            UsageError: as `restore`.
        """
        self.folder.sweep()
        step, damaged = self._restore_newest(self.folder.steps())
        for each in damaged:
            self.folder.set_aside(each)
        if damaged:
            tell(f"The damaged files are now in {self.folder.path}/damaged.")
        return step

    def _restore_newest(self, steps: list[int]) -> tuple[int, list[int]]:
        """Restores the newest whole checkpoint; returns its meta-step, and the damaged ones."""
        damaged: dict[int, str] = {}
        for step in reversed(steps):
            try:
                values = self._read(step)
            except DamagedError as error:
                damaged[step] = str(error)
                continue
            self._assign(step, values)
            for each, reason in damaged.items():
                tell(
                    f"The checkpoint of meta-step {each} in {self.folder.path} is damaged: "
                    f"{reason}. The newest whole one is of meta-step {step}: "
                    f"{each - step} meta-steps are lost."
                )
            return step, list(damaged)
        if self.folder.is_used():
            told = "; ".join(f"meta-step {each}: {reason}" for each, reason in damaged.items())
            raise UsageError(
                f"Expected a whole checkpoint in {self.folder.path}, got only damaged ones "
                f"({told or 'set aside earlier'}); put back a copy, or pass another --workdir to "
                "begin anew."
            )
        return self.step, []

    def _read(self, step: int) -> dict[str, np.ndarray]:
        values = self.folder.read(step)
        for name, variable in self._named():
            if id(variable) in self._trainable and not _is_finite(values.get(name)):
                raise DamagedError("it holds weights that are infinite or NaN")
            if variable is self._optimizer.iterations and np.any(values.get(name, step) != step):
                raise DamagedError(f"it is that of meta-step {values[name]}")
        return values

    def _assign(self, step: int, values: dict[str, np.ndarray]) -> None:
        """Sets all variables, or none if the checkpoint is of another learner."""
        expected = {name: tuple(variable.shape) for name, variable in self._named()}
        kinds = tuple(f"{kind}/" for kind in self._variables)
        found = {n: np.shape(value) for n, value in values.items() if n.startswith(kinds)}
        if expected != found:
            differing = sorted(n for n in expected | found if expected.get(n) != found.get(n))
            first = differing[0]
            raise UsageError(
                f"Expected the checkpoint of meta-step {step} in {self.folder.path} to hold the "
                f"{len(expected)} variables of this learner, got {len(differing)} that differ "
                f"(first {first.split('/.')[0]}: {found.get(first, 'missing')} there, "
                f"{expected.get(first, 'missing')} here); make the learner as the run's was, or "
                "pass another workdir."
            )
        for name, variable in self._named():
            variable.assign(values[name])
        self._saved = step

    def _named(self) -> Iterator[tuple[str, keras.Variable]]:
        """Yields all variables with the names that TensorFlow gives them in a checkpoint."""
        for kind, variables in self._variables.items():
            for number, variable in enumerate(variables):
                yield f"{kind}/{number}/.ATTRIBUTES/VARIABLE_VALUE", variable

    def _require_finite_variables(self) -> None:
        names = [
            variable.path
            for _, variable in self._named()
            if id(variable) in self._trainable and not _is_finite(variable.numpy())
        ]
        if names:
            raise TrainingError(
                f"Expected finite weights after meta-step {self.step}, got infinite or NaN values "
                f"in {len(names)} variables (first {names[0]}), which are not saved; "
                f"{self._what_is_there()} A smaller --meta_learning_rate or --clip_norm helps."
            )

    def _what_is_there(self) -> str:
        if self._saved is None:
            return "no checkpoint is there yet."
        return f"the checkpoint of meta-step {self._saved} is untouched."


def has_checkpoint(workdir: PathLike) -> bool:
    """Returns whether `workdir` holds a run with a checkpoint, whole or damaged."""
    return CheckpointFolder(workdir).is_used()


def require_checkpoint(workdir: PathLike) -> None:
    """Raises UsageError unless `workdir` holds a checkpoint."""
    if not has_checkpoint(workdir):
        raise UsageError(
            f"Expected a checkpoint in {CheckpointFolder(workdir).path}, got none; "
            "train there first, or pass the workdir of a run."
        )


def restore(learner: MetaLearner, workdir: PathLike, which: int | str = "newest") -> int:
    """Restores `learner` from a checkpoint of the run in `workdir`.

    Args:
        learner: a compiled learner, as that of the run.
        workdir: folder of the run.
        which: "newest", the newest whole one, or the number of a meta-step.

    Returns:
        The number of its meta-step.

    Raises:
        UsageError: there is no such checkpoint, or none that is whole and of such a learner.
    """
    require_checkpoint(workdir)
    return Checkpoints(learner, workdir).restore(which)


def _is_finite(value: np.ndarray | None) -> bool:
    return value is None or bool(np.all(np.isfinite(value)))


def _reason(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return str(getattr(error, "message", error)).strip().split("\n")[0][:200]
