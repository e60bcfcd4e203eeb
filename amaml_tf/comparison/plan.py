"""The plan of a comparison: seeds, budgets, and measurements during training."""

from __future__ import annotations

import dataclasses

from amaml_tf.errors import UsageError
from amaml_tf.experiment.declaration import Declared, setting
from amaml_tf.experiment.evaluation_settings import MOST_SEED


@dataclasses.dataclass(frozen=True, kw_only=True)
class Plan(Declared):
    """The settings of a comparison that all methods share, besides those of the experiment.

    Each field is a flag of `amaml-compare`.

    Raises:
        UsageError: a value is out of range, or two values do not fit together.
    """

    seeds: tuple[int, ...] = setting("Seeds of the final runs.", (0, 1, 2), least=0, most=MOST_SEED)
    search_seed: int = setting("Seed of the search's runs.", 1000, least=0, most=MOST_SEED)
    search_meta_steps: int = setting("Meta-updates of the search's runs.", 300, least=1)
    budget_seconds: float | None = setting(
        "Seconds of training, from the end of the first meta-step (so without compilation) and "
        "without evaluations. Training also ends after --num_meta_steps."
    )
    budget_decay: bool = setting(
        "The meta learning rate falls to 0 along a cosine over --budget_seconds, as it does with "
        "--decay_steps over meta-steps.",
        False,
    )
    search_budget_seconds: float | None = setting(
        "Seconds of training of the search's runs, in place of --search_meta_steps. Use it if the "
        "budget of the final runs is in seconds."
    )
    curve_points: int = setting(
        "How many times to measure during training, each after twice as much training.", 5, least=0
    )
    num_curve_episodes: int = setting("Test episodes of each of these measurements.", 50, least=2)
    metric: str | None = setting(
        "Metric to choose by. Default: accuracy, rmse, or the task's own metric."
    )
    stop: str = setting(
        "Where the search takes the metric: at the end of adaptation, or where it is best for "
        "validation tasks. The table has both.",
        "last",
        choices=lambda: ("last", "validation"),
    )
    parallel: int = setting("Runs at a time, each in a process of its own.", 1, least=1)

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("budget_seconds", "search_budget_seconds"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise UsageError(
                    f"Expected --{name} above 0, got {value:g}; pass a positive number."
                )
        searches_by_time = self.search_budget_seconds is not None
        if (self.budget_decay or searches_by_time) and self.budget_seconds is None:
            name = "budget_decay" if self.budget_decay else "search_budget_seconds"
            raise UsageError(
                f"Expected --budget_seconds with --{name}, got none; pass the seconds of a final "
                "run."
            )
        if self.budget_decay and not searches_by_time:
            raise UsageError(
                "Expected --search_budget_seconds with --budget_decay, got none; pass the seconds "
                "of a search run: its rate falls over them, like that of a final run."
            )

    def require_one_decay(self, decay_steps: int | None) -> None:
        """Raises UsageError if the meta learning rate is to fall in two ways."""
        if self.budget_decay and decay_steps is not None:
            raise UsageError(
                f"Expected --budget_decay or --decay_steps, got both ({decay_steps} steps); leave "
                "one out: the rate falls over seconds, or over meta-steps."
            )
