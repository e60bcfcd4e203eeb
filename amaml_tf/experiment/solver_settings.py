"""The settings of solvers: their steps and tolerances."""

from __future__ import annotations

import dataclasses

from amaml_tf.experiment.declaration import IN_EVALUATION, ON_RESUMING, Declared, setting
from amaml_tf.solvers.method import MOST_STEPS


@dataclasses.dataclass(frozen=True, kw_only=True)
class SolverSettings(Declared):
    """Plain values that decide how a solver steps."""

    step_size: float | None = setting(
        "Step of a fixed-step solver, or inner learning rate.",
        of="solver",
        above=0,
        may_change=IN_EVALUATION,
    )
    num_stages: int | None = setting(
        "Stages of a stabilised step of --step_size: gradients of the support loss.",
        of="solver",
        least=1,
        most=1000,
        may_change=IN_EVALUATION,
    )
    solver_order: int | None = setting(
        "Order of a stabilised step of --step_size, 1 or 2.",
        of="solver",
        argument="order",
        least=1,
        most=2,
        may_change=IN_EVALUATION,
    )
    rtol: float | None = setting(
        "Relative tolerance of an adaptive solver.",
        of="solver",
        above=0,
        may_change=IN_EVALUATION,
    )
    atol: float | None = setting(
        "Absolute tolerance of an adaptive solver.",
        of="solver",
        above=0,
        may_change=IN_EVALUATION,
    )
    # A cap on the steps, and what follows a failure, change nothing in the steps that a run took.
    max_num_steps: int | None = setting(
        "Cap on the solver's steps.", of="solver", least=1, most=MOST_STEPS, may_change=ON_RESUMING
    )
