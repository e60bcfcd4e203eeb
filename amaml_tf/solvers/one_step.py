"""The interface of the solvers of this library: one-step methods that can be differentiated.

A `OneStepSolver` is a `tfp.math.ode.Solver`, so `solve` works as the TensorFlow Probability
documentation says. What it adds are the pieces from which the discrete adjoint is made: one step
of a batch of problems (`step`), and the product of a cotangent with the derivative of that step
(`step_vjp`). Both are pure functions of tensors.
"""

from __future__ import annotations

import abc
from typing import Any, NamedTuple

import tensorflow as tf
import tensorflow_probability as tfp

from amaml_tf.solvers.system import System


class Step(NamedTuple):
    """The result of one step of B rows.

    Attributes:
        state: `[B, P]`, y at the end of the step.
        start_derivative: `[B, P]`, f at its start; `[B, 0]` for solvers that do not carry it.
        derivative: `[B, P]`, f at its end; `[B, 0]` likewise.
        error: `[B, P]`, an estimate of the local error; None for fixed-step solvers.
        points: the `tf.TensorArray` of stage states, or None if none was given.
    """

    state: tf.Tensor
    start_derivative: tf.Tensor
    derivative: tf.Tensor
    error: tf.Tensor | None
    points: Any


class OneStepSolver(tfp.math.ode.Solver):
    """Base class of explicit one-step methods whose rows have step sizes of their own."""

    #: Order of convergence.
    order: int
    #: Whether the step size follows from an error estimate. Such a solver carries f from the end
    #: of one step to the start of the next.
    adaptive: bool
    max_num_steps: Any
    #: Most evaluations in one step.
    max_num_stages: int

    def __init__(
        self,
        make_adjoint_solver_fn: Any = None,
        validate_args: bool = False,
        name: str | None = None,
    ) -> None:
        super().__init__(
            make_adjoint_solver_fn=make_adjoint_solver_fn,
            validate_args=validate_args,
            name=name or type(self).__name__,
        )

    # -- one step, and its reverse ------------------------------------------------------------

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
        points: Any = None,
        offset: Any = 0,
    ) -> Step:
        """Takes one step of every row.

        Args:
            system: the problems.
            time: `[B]`, the start of the step.
            state: `[B, P]`, y there.
            derivative: `[B, P]`, f there, if the solver is adaptive; else ignored.
            known: bool scalar; if false, `derivative` is not yet f, and takes one evaluation more.
            step_size: `[B]`; a row with zero stays where it is.
            num_stages: `[B]` int32, from `plan`.
            points: the `tf.TensorArray` to write the states of the stages to, or None.
            offset: row of `points` for the first stage; rows that would lie beyond its last
                row are written to that one.
        """

    @abc.abstractmethod
    def step_vjp(
        self,
        system: System,
        time: tf.Tensor,
        step_size: tf.Tensor,
        num_stages: tf.Tensor,
        points: tf.Tensor,
        offset: tf.Tensor,
        cotangent: tf.Tensor,
        constants: tuple[tf.Tensor, ...],
    ) -> tuple[tf.Tensor, tuple[tf.Tensor, ...]]:
        """Multiplies `cotangent` `[B, P]` with the derivative of the step, transposed.

        Args:
            system: the problems, with `vjp`.
            time: `[B]`, the start of the step.
            step_size: `[B]`, held fixed.
            num_stages: `[B]` int32, held fixed.
            points: `[K + 1, B, P]`, stage states, of which those of this step start at `offset`.
            offset: scalar int32.
            cotangent: `[B, P]`, with respect to the state at the end of the step.
            constants: cotangents of the constants so far, to which those of this step are added.

        Returns:
            The cotangent with respect to the state at the start, and those of the constants.
        """

    # -- step size control: what an adaptive solver knows besides the error -------------------

    def initial_memory(self, state: tf.Tensor) -> Any:
        """Returns what the solver remembers between steps: a (nested) tuple of tensors."""
        del state
        return ()

    def refresh(
        self,
        system: System,
        time: tf.Tensor,
        state: tf.Tensor,
        memory: Any,
        rejected: tf.Tensor,
        active: tf.Tensor,
    ) -> tuple[Any, tf.Tensor]:
        """Updates the memory before a step. Returns it and the Jacobian products made, `[B]`."""
        del system, time, state, rejected
        return memory, tf.zeros_like(active, tf.int32)

    def limit_step_size(self, memory: Any, step_size: tf.Tensor, first: tf.Tensor) -> tf.Tensor:
        """Returns `step_size` cut down to what the solver can do, or dares to do `first`."""
        del memory, first
        return step_size

    @abc.abstractmethod
    def plan(self, memory: Any, step_size: tf.Tensor) -> tf.Tensor:
        """Returns how many evaluations each row takes for a step of `step_size`: `[B]` int32."""

    def spectral_radius(self, memory: Any, like: tf.Tensor) -> tf.Tensor:
        """Returns the spectral radius of df/dy that the memory holds, `[B]`; zero if none."""
        del memory
        return tf.zeros_like(like)

    # -- the contract of tfp.math.ode.Solver ----------------------------------------------------

    def _solve(
        self,
        ode_fn: Any,
        initial_time: Any,
        initial_state: Any,
        solution_times: Any,
        jacobian_fn: Any = None,
        jacobian_sparsity: Any = None,
        batch_ndims: int | None = None,
        previous_solver_internal_state: Any = None,
    ) -> tfp.math.ode.Results:
        del jacobian_fn, jacobian_sparsity, batch_ndims, previous_solver_internal_state
        from amaml_tf.solvers import contract  # the loop is built on this interface

        return contract.solve(self, ode_fn, initial_time, initial_state, solution_times)

    def _initialize_solver_internal_state(
        self, ode_fn: Any, initial_time: Any, initial_state: Any
    ) -> Any:
        del ode_fn, initial_time, initial_state
        return ()
