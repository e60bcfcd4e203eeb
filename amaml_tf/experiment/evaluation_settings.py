"""The settings of evaluations: whose episodes, and how to adapt to them."""

from __future__ import annotations

import dataclasses

from amaml_tf.errors import UsageError
from amaml_tf.experiment.declaration import ON_RESUMING, Declared, as_text, setting
from amaml_tf.functional.query_statistics import QUERY_STATISTICS
from amaml_tf.solvers.method import MOST_STEPS

# TensorFlow counts in 32 bits. Sizes, which have no `most` of their own, end at a million.
MOST_SEED = 2**31 - 1


@dataclasses.dataclass(frozen=True, kw_only=True)
class EvaluationSettings(Declared):
    """Settings that change nothing in a training, but how its result is measured.

    Raises:
        UsageError: two settings exclude each other.
    """

    num_eval_episodes: int = setting(
        "Unseen episodes to evaluate on.", 600, least=2, may_change=ON_RESUMING
    )
    eval_batch_size: int = setting(
        "Episodes to evaluate at a time.", 20, least=1, may_change=ON_RESUMING
    )
    eval_seed: int = setting(
        "Which unseen episodes.", 0, least=0, most=MOST_SEED, may_change=ON_RESUMING
    )
    eval_split: str = setting(
        "Whose episodes.",
        "test",
        choices=lambda: ("test", "validation"),
        may_change=ON_RESUMING,
    )
    eval_optimizer: str | None = setting(
        "Name of a Keras optimizer to adapt by. Default: the algorithm's own inner run.",
        may_change=ON_RESUMING,
    )
    eval_learning_rate: float | None = setting(
        "Learning rate of --eval_optimizer.", above=0, may_change=ON_RESUMING
    )
    eval_weight_decay: float | None = setting(
        "Weight decay of --eval_optimizer.", least=0, may_change=ON_RESUMING
    )
    eval_steps: tuple[int, ...] | None = setting(
        "Numbers of steps of --eval_optimizer to measure at: 10,100,1000.",
        most=MOST_STEPS,
        may_change=ON_RESUMING,
    )
    eval_all_layers: bool | None = setting(
        "--eval_optimizer trains all layers, not only those that the algorithm adapts.",
        may_change=ON_RESUMING,
    )
    eval_times: tuple[float, ...] | None = setting(
        "Times of the inner run to measure at: 0.5,5. The last stands for --final_time.",
        may_change=ON_RESUMING,
    )
    query_statistics: str = setting(
        "Whose statistics batch normalization uses in predictions for a query set: of the support "
        "set, or of the batch of queries (transductive, as in the papers).",
        "support",
        choices=lambda: QUERY_STATISTICS,
        may_change=ON_RESUMING,
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("eval_steps", "eval_times"):
            values = getattr(self, name)
            if values and not (min(values) >= 0 and max(values) > 0):
                raise UsageError(
                    f"Expected {name} of 0 or more, one of them above 0, got {as_text(values)}; "
                    "pass other numbers."
                )
        if self.eval_optimizer is None:
            self._refuse_what_needs_an_eval_optimizer()
        elif self.eval_times or not self.eval_steps:
            came = "eval_times" if self.eval_times else "none"
            raise UsageError(
                f"Expected eval_steps with eval_optimizer={self.eval_optimizer}, got {came}; "
                "pass something like --eval_steps=10,100,1000, and no --eval_times."
            )

    def _refuse_what_needs_an_eval_optimizer(self) -> None:
        for name in ("eval_steps", "eval_learning_rate", "eval_weight_decay", "eval_all_layers"):
            value = getattr(self, name)
            if value is not None and value != ():
                raise UsageError(
                    f"Expected an eval_optimizer with {name}={as_text(value)}, got none; pass "
                    "--eval_optimizer=sgd for steps of gradient descent, or --eval_times for the "
                    "algorithm's own inner run (a step's time is its size)."
                )
