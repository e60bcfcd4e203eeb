"""The errors of this library; commands print them as one sentence."""

from __future__ import annotations


class UsageError(ValueError):
    """A mistake of the caller; the message says what was expected, what came and what to do."""


class ExportNotFoundError(UsageError, FileNotFoundError):
    """There is no exported initialization at the given place."""


class ExportError(RuntimeError):
    """What was exported does not answer as the learner does."""


class AdaptationError(RuntimeError):
    """The adaptation of a task failed before its end."""


class TrainingError(RuntimeError):
    """A training run cannot go on: it diverged, or its tasks fail."""


class SaveError(RuntimeError):
    """A file of a run could not be written; what was there before is untouched."""


class WorkerError(RuntimeError):
    """A worker process of a comparison ended before its work was done."""


#: The errors that commands print as one sentence. All other errors keep their traceback.
TOLD = (UsageError, ExportError, AdaptationError, TrainingError, SaveError, WorkerError)
