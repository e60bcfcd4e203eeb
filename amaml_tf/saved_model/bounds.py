"""The bounds of a request, so that none can hold a server."""

from __future__ import annotations

import copy
import dataclasses
import math

from amaml_tf.algorithms.base import Algorithm
from amaml_tf.algorithms.flow_based import FlowBased
from amaml_tf.errors import UsageError
from amaml_tf.saved_model.versions import is_count
from amaml_tf.solvers.solution import num_fixed_steps
from amaml_tf.solvers.tfp_solver import OneStepSolver

#: How many times more a request may take than what is known of training.
MARGIN = 10
#: Gradient evaluations and rows of a request if nothing is known of training.
EVALUATIONS = 10_000
ROWS = 10_000
#: Rows to predict for in a request, however few the tasks of training have: they are cheap, and a
#: server may join the requests of many callers.
QUERY_ROWS = 1_000
TASKS = 32
#: The largest bound: exports count in 32 bits, products with the Hessian up to four times as high.
LARGEST = 10**8


@dataclasses.dataclass(frozen=True, kw_only=True)
class Bounds:
    """What a request may ask for; a larger one is refused with INVALID_ARGUMENT.

    Attributes:
        max_gradient_evaluations: gradients of the support loss in one adaptation. It is looked at
            before every step of the solver, and for the last one after it. Products with the
            Hessian are bounded by four times as many, and 50.
        max_support_rows: examples of one task's support set.
        max_query_rows: inputs to predict for in a request, or for one task of it.
        max_tasks: tasks of a request that has several.

    Raises:
        UsageError: a bound is no whole number from 1 to 100,000,000.
    """

    max_gradient_evaluations: int = EVALUATIONS
    max_support_rows: int = ROWS
    max_query_rows: int = ROWS
    max_tasks: int = TASKS

    def __post_init__(self) -> None:
        for name, value in dataclasses.asdict(self).items():
            if not is_count(value) or value > LARGEST:
                raise UsageError(
                    f"Expected {name} to be a whole number from 1 to {LARGEST}, got {value!r}; "
                    "pass one."
                )


def default_bounds(
    algorithm: Algorithm,
    evaluations: float | None = None,
    rows: int | None = None,
    query_rows: int | None = None,
) -> Bounds:
    """Returns ten times what training took, as far as it is known.

    Args:
        algorithm: how the export adapts. The evaluations of a solver with fixed steps are known.
        evaluations: the 99th percentile of the gradient evaluations of an adaptation; None:
            unknown, and the bound is 10,000.
        rows: support rows of a task; None: unknown, and the bound is 10,000.
        query_rows: query rows of a task; None: unknown, and the bound is 10,000. The bound is 1,000
            or more.
    """
    fixed = fixed_evaluations(algorithm)
    if fixed is not None:
        most = fixed
    else:
        most = EVALUATIONS if evaluations is None else math.ceil(MARGIN * evaluations)
    bounds = {
        "max_gradient_evaluations": most,
        "max_support_rows": ROWS if rows is None else MARGIN * rows,
        "max_query_rows": ROWS if query_rows is None else max(QUERY_ROWS, MARGIN * query_rows),
    }
    return Bounds(**{name: min(bound, LARGEST) for name, bound in bounds.items()})


def fixed_evaluations(algorithm: Algorithm) -> int | None:
    """Returns the evaluations of every adaptation by steps of a fixed size; None for others."""
    solver = algorithm.flow.solver if isinstance(algorithm, FlowBased) else None
    if not isinstance(solver, OneStepSolver) or solver.adaptive:
        return None
    longest = num_fixed_steps(solver.step_size, float(algorithm.final_time()))
    return max(1, longest) * solver.max_num_stages


def bounded(algorithm: Algorithm, max_gradient_evaluations: int) -> Algorithm:
    """Returns `algorithm`, whose adaptation ends at a number of gradient evaluations.

    An algorithm without a flow is returned as it is: only it knows what it does.

    Raises:
        UsageError: the solver is one of TensorFlow Probability, which cannot be bounded.
    """
    if not isinstance(algorithm, FlowBased):
        return algorithm
    solver = algorithm.flow.solver
    if not isinstance(solver, OneStepSolver):
        raise UsageError(
            "Expected a solver of amaml_tf.solvers to export, whose work in a request can be "
            f"bounded, got {type(solver).__name__}; export with another, such as "
            "--solver=runge_kutta_chebyshev."
        )
    limited = copy.copy(solver.bounded(max(2, max_gradient_evaluations)))
    limited.max_num_evaluations = max_gradient_evaluations
    changed = copy.copy(algorithm)
    changed.flow = dataclasses.replace(algorithm.flow, solver=limited)
    return changed
