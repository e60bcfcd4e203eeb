"""The settings of how much of a batch is computed at a time."""

from __future__ import annotations

import dataclasses

from amaml_tf.experiment.declaration import ON_RESUMING, Declared, setting


@dataclasses.dataclass(frozen=True, kw_only=True)
class Resources(Declared):
    """Settings that change the memory of a run, and its results by rounding errors alone."""

    tasks_per_step: int | None = setting(
        "Most tasks that are solved at a time. Default: all of a batch.",
        least=1,
        may_change=ON_RESUMING,
    )
    examples_per_step: int | None = setting(
        "Most support examples of a task that are evaluated at a time. Default: all.",
        least=1,
        may_change=ON_RESUMING,
    )
