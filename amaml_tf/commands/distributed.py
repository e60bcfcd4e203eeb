"""--distribution: on which devices and machines a command solves its tasks."""

from __future__ import annotations

import contextlib
import dataclasses
import os
from collections.abc import Iterator

from absl import flags

from amaml_tf.distribution import DISTRIBUTIONS, Replicas, replicas_of
from amaml_tf.experiment import Experiment
from amaml_tf.training import stopping

# Not a setting of the experiment: the result does not depend on it.
_DISTRIBUTION = flags.DEFINE_enum(
    "distribution",
    "none",
    DISTRIBUTIONS,
    "Divide the tasks of a batch among the GPUs of this machine (mirrored), or of all workers that "
    "TF_CONFIG names (multi_worker).",
)

# Where the data lies may differ from worker to worker.
_OF_THE_MACHINE = ("data_dir", "download")


@contextlib.contextmanager
def replicas(experiment: Experiment) -> Iterator[Replicas | None]:
    """Connects the workers. Only the chief prints, and nobody ends before the chief has written.

    Raises:
        UsageError: the cluster or the settings of the workers are not as they should be.
        TrainingError: another worker was lost.
    """
    found = replicas_of(_DISTRIBUTION.value)
    if found is None or not found.spans_processes:
        yield found
        return
    stopping.renew()
    settings = dataclasses.asdict(experiment)
    with contextlib.ExitStack() as stack:
        if not found.is_chief:
            nowhere = stack.enter_context(open(os.devnull, "w", encoding="utf-8"))
            stack.enter_context(contextlib.redirect_stdout(nowhere))
        stack.enter_context(found.losses_told())
        found.require_like_chief({n: settings[n] for n in settings if n not in _OF_THE_MACHINE})
        yield found
        found.of_chief(None)
