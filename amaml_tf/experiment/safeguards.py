"""The settings of what keeps a run safe: validations, checkpoints, bad tasks."""

from __future__ import annotations

import dataclasses

from amaml_tf.experiment.declaration import MOST_OF_A_SIZE, ON_RESUMING, Declared, setting
from amaml_tf.training.saving import ON_SAVE_FAILURE

# TensorFlow counts in 32 bits.
MOST_META_STEPS = 10**9
MOST_EPISODES = MOST_META_STEPS * MOST_OF_A_SIZE


@dataclasses.dataclass(frozen=True, kw_only=True)
class Safeguards(Declared):
    """Settings that change no meta-step, but which of them are made, and what is kept of them.

    (The last bits of a meta-step are another matter: see `deterministic`.)
    """

    deterministic: bool = setting(
        "The same bits in every run, with any --vectorize and --jit_compile, on any number of "
        "cores. Each operation then uses one core.",
        False,
    )
    checkpoint_every: int = setting(
        "Meta-steps between two checkpoints.",
        500,
        least=1,
        most=MOST_META_STEPS,
        may_change=ON_RESUMING,
    )
    max_dropped: float = setting(
        "Largest fraction of tasks that --on_failure=drop may leave out of 100 meta-steps.",
        0.5,
        least=0,
        most=1,
        may_change=ON_RESUMING,
    )
    skip_episodes: tuple[int, ...] | None = setting(
        "Numbers of training episodes to go round.",
        least=0,
        most=MOST_EPISODES,
        may_change=ON_RESUMING,
    )
    verify_checkpoints: bool | None = setting(
        "Read each checkpoint back. Default: up to 256 MiB.", may_change=ON_RESUMING
    )
    on_save_failure: str = setting(
        "If a checkpoint or a row of a log cannot be written: stop, or warn and go on.",
        "stop",
        choices=lambda: ON_SAVE_FAILURE,
        may_change=ON_RESUMING,
    )
    validate_every: int | None = setting(
        "Meta-steps between two validations. Default: none.", least=1, may_change=ON_RESUMING
    )
    num_validation_episodes: int = setting(
        "Episodes of a validation.", 100, least=2, may_change=ON_RESUMING
    )
    keep_best: bool = setting(
        "Keep the checkpoint of the lowest validation loss.", True, may_change=ON_RESUMING
    )
    patience: int | None = setting(
        "Stop after so many validations without a new best.", least=1, may_change=ON_RESUMING
    )
