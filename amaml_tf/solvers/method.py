"""The interface of a one-step method: one step of a batch of problems, and its derivative.

The integration loop calls `step`. The discrete adjoint calls `step_vjp`, the product of a cotangent
with the derivative of a step. Both are pure functions of tensors.
"""

from __future__ import annotations

import abc
from typing import NamedTuple, TypeAlias

import tensorflow as tf

from amaml_tf.solvers.state_stack import Rows
from amaml_tf.solvers.system import System

#: What a method remembers between steps: a (nested) tuple of tensors.
Memory: TypeAlias = tuple[tf.Tensor, ...]


class Step(NamedTuple):
    """The result of one step of B rows.

    Attributes:
        state: `[B, P]`, y at the end of the step.
        start_derivative: `[B, P]`, f at its start; `[B, 0]` for solvers that do not keep it.
        derivative: `[B, P]`, f at its end; `[B, 0]` likewise.
        error: `[B, P]`, an estimate of the local error; None for fixed-step solvers.
        rows: `Rows` with the stage states, or None if none were given.
    """

    state: tf.Tensor
    start_derivative: tf.Tensor
    derivative: tf.Tensor
    error: tf.Tensor | None
    rows: Rows | None


#: The largest cap on the steps of a solve, which keeps some numbers of every step.
MOST_STEPS = 10**7


class Method(abc.ABC):
    """An explicit one-step method in which every row has its own step size."""

    #: Order of convergence.
    order: int
    #: Whether an error estimate determines the step size.
    adaptive: bool
    #: Cap on the attempted steps of a solve; None: as many as the interval needs.
    max_num_steps: int | None
    #: Cap on the evaluations of a solve, looked at before every step, which caps its Jacobian
    #: products as well (four for each evaluation, and 50); None: no cap.
    max_num_evaluations: int | None = None
    #: Largest number of evaluations in one step.
    max_num_stages: int
    #: The longest step of a method with fixed steps.
    step_size: float
    #: Tolerances of an adaptive method, and its first step size (None: the method chooses it).
    rtol: float
    atol: float
    first_step_size: float | None

    @property
    def reuses_derivative(self) -> bool:
        """Whether f from the end of a step is used at the start of the next: if f is there."""
        return self.adaptive

    def bounded(self, max_num_stages: int) -> Method:
        """Returns this method, limited to `max_num_stages` evaluations per step if possible.

        A method with a fixed number of stages returns itself.
        """
        del max_num_stages
        return self

    # -- one step and its derivative ----------------------------------------------------------

    @abc.abstractmethod
    def step(
        self,
        system: System,
        time: tf.Tensor,
        state: tf.Tensor,
        derivative: tf.Tensor,
        known: tf.Tensor,
        step_size: tf.Tensor,
        num_stages: tf.Tensor,
        rows: Rows | None = None,
        row: tf.Tensor | int = 0,
    ) -> Step:
        """Takes one step of every row.

        Args:
            system: the problems.
            time: `[B]`, the start of the step.
            state: `[B, P]`, y at `time`.
            derivative: `[B, P]`, f at `time`; ignored unless the solver reuses it.
            known: bool scalar; if false, `derivative` does not hold f yet, and f is evaluated.
            step_size: `[B]`; a row with step size 0 does not move.
            num_stages: `[B]` int32, from `plan`.
            rows: where the stage states are written, or None.
            row: the row of the first stage. What lies beyond the last row is not kept.
        """

    @abc.abstractmethod
    def step_vjp(
        self,
        system: System,
        time: tf.Tensor,
        step_size: tf.Tensor,
        num_stages: tf.Tensor,
        rows: Rows,
        row: tf.Tensor,
        cotangent: tf.Tensor,
        constants: tuple[tf.Tensor, ...],
    ) -> tuple[tf.Tensor, tuple[tf.Tensor, ...]]:
        """Multiplies `cotangent` `[B, P]` by the transposed derivative of the step.

        Args:
            system: the problems, with `vjp`.
            time: `[B]`, the start of the step.
            step_size: `[B]`, held fixed.
            num_stages: `[B]` int32, held fixed.
            rows: stage states; those of this step start at row `row`.
            row: scalar int32.
            cotangent: `[B, P]`, with respect to the state at the end of the step.
            constants: the cotangents of the constants so far; those of this step are added.

        Returns:
            The cotangent with respect to the state at the start, and those of the constants.
        """

    # -- step size control of adaptive solvers -----------------------------------------------

    def step_size_factor(self, error_ratio: tf.Tensor) -> tf.Tensor:
        """Returns the factor for a step size whose error was `error_ratio` times the tolerance.

        Only adaptive methods have it.
        """
        raise NotImplementedError(f"Expected an adaptive method, got {type(self).__name__}.")

    def initial_memory(self, state: tf.Tensor) -> Memory:
        """Returns the memory before the first step."""
        del state
        return ()

    def refresh(
        self,
        system: System,
        time: tf.Tensor,
        state: tf.Tensor,
        memory: Memory,
        rejected: tf.Tensor,
        active: tf.Tensor,
    ) -> tuple[Memory, tf.Tensor]:
        """Returns the memory updated before a step, and the number of Jacobian products, `[B]`."""
        del system, time, state, rejected
        return memory, tf.zeros_like(active, tf.int32)

    def limit_step_size(self, memory: Memory, step_size: tf.Tensor, first: tf.Tensor) -> tf.Tensor:
        """Returns `step_size`, limited to what the method allows; `first` marks a first step."""
        del memory, first
        return step_size

    @abc.abstractmethod
    def plan(self, memory: Memory, step_size: tf.Tensor) -> tf.Tensor:
        """Returns the number of evaluations of each row for a step of `step_size`, `[B]` int32."""

    def spectral_radius(self, memory: Memory, like: tf.Tensor) -> tf.Tensor:
        """Returns the spectral radius of df/dy that the memory holds, `[B]`; zero if none."""
        del memory
        return tf.zeros_like(like)
