"""The vector field of a support loss, and the norm for the errors of its solution."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import tensorflow as tf

from amaml_tf.aliases import Vectors
from amaml_tf.episodes import Examples
from amaml_tf.functional.model import FunctionalModel, State
from amaml_tf.solvers.system import Split, System


class Constants(NamedTuple):
    """The constants of the vector field, each a vector `[B, ...]`, of width 0 if there is none.

    Where states are lists of tensors, so are the constants, and there is none in an empty list.

    Attributes:
        held: `[B, Q]`, trainable parameters that are not adapted.
        rates: `[B, P]` or `[B, 1]`, learned rates that multiply the gradient.
        anchor: `[B, P]`, the initialization, to which the proximal term pulls.
    """

    held: Vectors
    rates: Vectors
    anchor: Vectors

    def scaled(self, vector: Vectors) -> Vectors:
        """Returns `vector` times the rates."""
        has_rates = _is_given(self.rates)
        return tf.nest.map_structure(tf.multiply, self.rates, vector) if has_rates else vector

    def pulled(self, u: Vectors, gradient: Vectors, proximal_weight: float) -> Vectors:
        """Returns `gradient` at `u` with that of the proximal term."""
        if not _is_given(self.anchor):
            return gradient
        return tf.nest.map_structure(
            lambda u, g, anchor: g + proximal_weight * (u - anchor), u, gradient, self.anchor
        )

    def in_parts(self, function: FunctionalModel) -> Constants:
        """Returns them as lists of tensors, the parts of the vectors."""
        layout = function.layout
        rates = []
        if self.rates.shape[-1] == layout.size:
            rates = layout.unravel(self.rates)
        elif _is_given(self.rates):
            rates = [tf.reshape(self.rates, [-1] + [1] * len(shape)) for shape in layout.shapes]
        held = function.held_layout.unravel(self.held) if _is_given(self.held) else []
        anchor = layout.unravel(self.anchor) if _is_given(self.anchor) else []
        return Constants(held, rates, anchor)


def vector_field(
    function: FunctionalModel,
    state: State,
    support: Examples,
    constants: Constants,
    proximal_weight: float = 0.0,
) -> System:
    """Returns du/dt = -rates (∇L_S(u) + w (u - anchor)) for a batch of tasks.

    Args:
        function: model and loss.
        state: values of the model's non-trainable variables, constant during a solve.
        support: (x, y) or (x, y, weight), task axis first.
        constants: see `Constants`.
        proximal_weight: w.

    Returns:
        A `System` whose `vjp` gives Hessian-vector products of L_S, and the cotangents of the
        three constants.
    """
    held, rates, anchor = constants

    def vjp(
        time: tf.Tensor, u: tf.Tensor, cotangent: tf.Tensor
    ) -> tuple[tf.Tensor, tuple[tf.Tensor, ...]]:
        del time
        direction = constants.scaled(cotangent)
        gradient, hessian, mixed = function.curvature(u, held, state, direction, *support)
        rates_bar, anchor_bar = rates, anchor
        if _is_given(rates):
            rates_bar = -constants.pulled(u, gradient, proximal_weight) * cotangent
            if rates.shape[-1] == 1:
                rates_bar = tf.reduce_sum(rates_bar, axis=-1, keepdims=True)
        if _is_given(anchor):
            anchor_bar = proximal_weight * direction
            hessian += anchor_bar
        return -hessian, (-mixed, rates_bar, anchor_bar)

    def second_derivative(time: tf.Tensor, u: tf.Tensor, slope: tf.Tensor) -> tf.Tensor:
        del time
        _, hessian, _ = function.curvature(u, held, state, slope, *support)
        if _is_given(anchor):
            hessian += proximal_weight * slope
        return -constants.scaled(hessian)

    def split(u: tf.Tensor) -> Split:
        parts = constants.in_parts(function)
        derivative = _derivative(function, state, support, parts, proximal_weight)
        flat = [tensor for part in parts for tensor in part]
        return Split(derivative, function.layout.unravel(u), function.layout, flat)

    return System(
        _derivative(function, state, support, constants, proximal_weight),
        lambda time, u, vector: vjp(time, u, vector)[0],
        vjp,
        second_derivative,
        copies=function.copies,
        split=split,
    )


def _derivative(
    function: FunctionalModel,
    state: State,
    support: Examples,
    constants: Constants,
    proximal_weight: float,
) -> Callable[[tf.Tensor, Vectors], Vectors]:
    def derivative(time: tf.Tensor, u: Vectors) -> Vectors:
        del time
        gradient = function.gradient(u, constants.held, state, *support)
        pulled = constants.pulled(u, gradient, proximal_weight)
        return tf.nest.map_structure(tf.negative, constants.scaled(pulled))

    return derivative


def _is_given(constant: Vectors) -> bool:
    return constant.shape[-1] != 0 if tf.is_tensor(constant) else bool(constant)


def relative_to_displacement(
    start: tf.Tensor,
) -> Callable[[tf.Tensor, tf.Tensor, tf.Tensor, float, float], tf.Tensor]:
    """Returns a `System.error_ratio` that compares errors with the distance from `start` `[B, P]`.

    A task learns u - θ. With tolerances relative to it, early steps are more accurate than with
    tolerances relative to u, and late steps of a long run are less accurate. The meta-gradient
    depends most on the early steps: for the same number of gradients it is better at every T
    (`docs/numerics.md` has the numbers).
    """

    def size(vector: tf.Tensor) -> tf.Tensor:
        return tf.sqrt(tf.reduce_mean(tf.square(vector), axis=-1))

    def error_ratio(
        error: tf.Tensor, state: tf.Tensor, new_state: tf.Tensor, rtol: float, atol: float
    ) -> tf.Tensor:
        displacement = tf.maximum(size(state - start), size(new_state - start))
        return size(error) / (atol + rtol * displacement)

    return error_ratio
