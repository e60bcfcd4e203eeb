"""The vector field of a support loss, and the norm for the errors of its solution."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import tensorflow as tf

from amaml_tf.aliases import Vectors
from amaml_tf.episodes import Examples
from amaml_tf.functional.model import FunctionalModel, State
from amaml_tf.solvers.system import Split, System
from amaml_tf.vectors import Layout


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
    has_held, has_rates, has_anchor = map(_is_given, constants)
    each = tf.nest.map_structure  # a vector, or every tensor of a list

    def scaled(vector: Vectors) -> Vectors:
        return each(tf.multiply, rates, vector) if has_rates else vector

    def pulled(u: Vectors, gradient: Vectors) -> Vectors:
        if not has_anchor:
            return gradient
        return each(lambda u, g, start: g + proximal_weight * (u - start), u, gradient, anchor)

    def derivative(time: tf.Tensor, u: Vectors) -> Vectors:
        del time
        return each(tf.negative, scaled(pulled(u, function.gradient(u, held, state, *support))))

    def split(u: tf.Tensor) -> Split:
        layout = function.layout
        given = Constants(
            function.held_layout.unravel(held) if has_held else [],
            _rates_of_parts(rates, layout) if has_rates else [],
            layout.unravel(anchor) if has_anchor else [],
        )
        field = vector_field(function, state, support, given, proximal_weight)
        constants = [part for parts in given for part in parts]
        return Split(field.derivative, layout.unravel(u), layout, constants)

    def vjp(
        time: tf.Tensor, u: tf.Tensor, cotangent: tf.Tensor
    ) -> tuple[tf.Tensor, tuple[tf.Tensor, ...]]:
        del time
        direction = scaled(cotangent)
        gradient, hessian, mixed = function.curvature(u, held, state, direction, *support)
        rates_bar = rates
        if has_rates:
            rates_bar = -pulled(u, gradient) * cotangent
            if rates.shape[-1] == 1:
                rates_bar = tf.reduce_sum(rates_bar, axis=-1, keepdims=True)
        anchor_bar = anchor
        if has_anchor:
            anchor_bar = proximal_weight * direction
            hessian += anchor_bar
        return -hessian, (-mixed, rates_bar, anchor_bar)

    def second_derivative(time: tf.Tensor, u: tf.Tensor, slope: tf.Tensor) -> tf.Tensor:
        del time
        _, hessian, _ = function.curvature(u, held, state, slope, *support)
        return -scaled(hessian + proximal_weight * slope if has_anchor else hessian)

    return System(
        derivative,
        lambda time, u, vector: vjp(time, u, vector)[0],
        vjp,
        second_derivative,
        copies=function.copies,
        split=split,
    )


def _is_given(constant: Vectors) -> bool:
    return constant.shape[-1] != 0 if tf.is_tensor(constant) else bool(constant)


def _rates_of_parts(rates: tf.Tensor, layout: Layout) -> list[tf.Tensor]:
    if rates.shape[-1] == layout.size:
        return layout.unravel(rates)
    return [tf.reshape(rates, [-1] + [1] * len(shape)) for shape in layout.shapes]


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
