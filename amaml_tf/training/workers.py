"""What the workers of a run must agree on: where it begins, and when it stops."""

from __future__ import annotations

import contextlib
import pathlib
import sys
from collections.abc import Iterator

from amaml_tf.aliases import PathLike
from amaml_tf.distribution import Replicas
from amaml_tf.training import stopping
from amaml_tf.training.checkpoints import Checkpoints
from amaml_tf.training.lock import locked


class Workers:
    """The workers of a run; without replicas, and with those of one process, this one alone.

    Args:
        replicas: of the learner; None: it is not distributed.
    """

    def __init__(self, replicas: Replicas | None) -> None:
        self._others = replicas if replicas is not None and replicas.spans_processes else None

    @property
    def verbosity(self) -> int:
        """How much Keras prints: a line for each epoch, or a bar on a terminal; only the chief."""
        if self._others is not None and not self._others.is_chief:
            return 0
        return 1 if sys.stdout.isatty() else 2

    @contextlib.contextmanager
    def at_work(self, workdir: PathLike) -> Iterator[pathlib.Path]:
        """Holds the lock of the folder that this worker writes to, and yields it.

        Signals are caught, in the end none is held, and the loss of another worker is told in a
        sentence.
        """
        with contextlib.ExitStack() as stack:
            folder = pathlib.Path(workdir)
            if self._others is not None:
                stack.enter_context(self._others.losses_told())
                folder = self._others.folder(workdir)
            stack.enter_context(stopping.caught())
            stack.callback(stopping.release)
            stack.enter_context(locked(folder))
            yield folder

    def begin(self, checkpoints: Checkpoints, *settings: int) -> int:
        """Resumes the run, on all workers from the chief's checkpoint; returns its meta-step.

        Raises:
            UsageError: the workers have different settings.
        """
        checkpoints.resume()
        if self._others is None:
            return checkpoints.step
        stopping.renew()
        stopping.hold()  # a worker that stops by itself would leave the others behind
        self._others.announce(None)
        named = {f"argument {number} of train": value for number, value in enumerate(settings)}
        shapes = [list(variable.shape) for variable in checkpoints.variables]
        self._others.require_like_chief({**named, "shapes of variables": shapes})
        self._others.share(checkpoints.variables)
        return checkpoints.step

    def of_chief(self, losses: dict[int, float]) -> dict[int, float]:
        """Returns the chief's validation losses by meta-step."""
        if self._others is None:
            return losses
        return dict(self._others.of_chief(list(losses.items())))

    def announce(self) -> None:
        """Tells the other workers of a signal that came here."""
        if self._others is not None:
            stopping.hold()
            self._others.announce(stopping.arrived())

    def signal(self) -> int | None:
        """Returns the number of the signal that stops all workers now; None: none does."""
        return stopping.arrived() if self._others is None else self._others.signal()

    def release(self) -> None:
        """Lets a signal stop this process, if there are no others that would wait for it."""
        if self._others is None:
            stopping.release()
