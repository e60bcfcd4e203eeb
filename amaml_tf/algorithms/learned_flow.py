"""The learned parameters of a gradient flow: its final time and its rates."""

from __future__ import annotations

import math

import keras
import numpy as np
import tensorflow as tf

from amaml_tf.aliases import Scalar
from amaml_tf.errors import UsageError
from amaml_tf.flow.gradient_flow import GradientFlow
from amaml_tf.functional.model import FunctionalModel
from amaml_tf.solvers.tfp_solver import OneStepSolver

LEARNED_RATES = ("none", "tensor", "entry")


class LearnedFlow:
    """The meta-parameters of a flow: log T, and the logarithms of its learned rates.

    Args:
        flow: the flow with these parameters.
        learn_final_time: whether to learn T, as log T, from `flow.final_time`.
        max_final_time: upper bound of a learned T, at least `flow.final_time`; None: no bound.
        learned_rates: "none", or rates that multiply the gradient, learned as logarithms,
            initially 1: one per "tensor" or one per "entry".

    Raises:
        UsageError: if an argument is out of its range, or does not fit the others.
    """

    def __init__(
        self,
        flow: GradientFlow,
        learn_final_time: bool = False,
        max_final_time: float | None = None,
        learned_rates: str = "none",
    ) -> None:
        if learned_rates not in LEARNED_RATES:
            raise UsageError(
                f"Expected learned_rates to be one of {LEARNED_RATES}, got {learned_rates!r}."
            )
        _check_final_time(flow, learn_final_time, max_final_time)
        self.flow = flow
        self.learn_final_time = learn_final_time
        self.max_final_time = max_final_time
        self.learned_rates = learned_rates
        self.variables: list[keras.Variable] = []
        self._log_final_time: keras.Variable | None = None
        self._log_rates: keras.Variable | None = None
        self._rate_sizes: list[int] | None = None

    def build(self, function: FunctionalModel) -> None:
        """Creates the variables, unless they exist."""
        if self.variables:
            self._require_same_size(function)
            return
        dtype = function.dtype.name
        if self.learn_final_time:
            start = math.log(self.flow.final_time)
            self._log_final_time = keras.Variable(start, dtype=dtype, name="log_final_time")
            if self.max_final_time is not None:
                # The optimizer applies this constraint after every step.
                longest = math.log(self.max_final_time)
                self._log_final_time.constraint = lambda value: keras.ops.minimum(value, longest)
            self.variables.append(self._log_final_time)
        if self.learned_rates != "none":
            sizes = function.layout.sizes
            per_tensor = self.learned_rates == "tensor"
            count = len(sizes) if per_tensor else sum(sizes)
            self._rate_sizes = sizes if per_tensor else None
            self._log_rates = keras.Variable(np.zeros(count), dtype=dtype, name="log_rates")
            self.variables.append(self._log_rates)

    def _require_same_size(self, function: FunctionalModel) -> None:
        sizes = function.layout.sizes
        expected = len(sizes) if self.learned_rates == "tensor" else sum(sizes)
        if self._log_rates is not None and self._log_rates.shape[0] != expected:
            raise UsageError(
                f"Expected a model with rates for {self._log_rates.shape[0]} parameters (or "
                f"tensors), as the one that this algorithm was built for, got {expected}; make a "
                "new algorithm for another model, or for other layers to train."
            )

    def final_time(self) -> Scalar:
        """Returns the current T."""
        if self._log_final_time is None:
            return self.flow.final_time
        return tf.stop_gradient(tf.exp(tf.convert_to_tensor(self._log_final_time)))

    def rates(self, adapted: tf.Tensor) -> tf.Tensor:
        """Returns the rates for `adapted` `[P]`: `[P]`, `[1]` for all, or `[0]` without rates."""
        rates = adapted[:0]
        if self._log_rates is not None:
            rates = tf.exp(tf.convert_to_tensor(self._log_rates))
            if self._rate_sizes is not None:
                rates = tf.repeat(rates, self._rate_sizes)
                rates = tf.ensure_shape(rates, adapted.shape)
        if self._log_final_time is not None:
            # To stretch time by a factor is to multiply the gradient by it. The factor is 1, and
            # its derivative is that of the final time.
            log_time = tf.convert_to_tensor(self._log_final_time)
            stretch = tf.exp(log_time - tf.stop_gradient(log_time))
            rates = stretch * rates if rates.shape[0] else stretch[tf.newaxis]
        return rates


def _check_final_time(
    flow: GradientFlow, learn_final_time: bool, max_final_time: float | None
) -> None:
    if max_final_time is not None:
        if not learn_final_time:
            raise UsageError(
                f"Expected learn_final_time with max_final_time={max_final_time}, which bounds a "
                "learned T; pass learn_final_time=True, or leave max_final_time out."
            )
        if not max_final_time >= flow.final_time:
            raise UsageError(
                f"Expected max_final_time to be at least the final_time {flow.final_time} that "
                f"learning starts from, got {max_final_time}."
            )
    solver = flow.solver
    fixed = isinstance(solver, OneStepSolver) and not solver.adaptive
    if learn_final_time and fixed and solver.max_num_steps is None:
        raise UsageError(
            f"Expected {type(solver).__name__} to have a cap on its steps if the "
            "final time is learned, got max_num_steps=None. Give it max_num_steps."
        )
