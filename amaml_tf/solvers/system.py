"""The input of a solver: a batch of independent initial value problems."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, TypeAlias

import tensorflow as tf

from amaml_tf.vectors import Layout

Tensor: TypeAlias = tf.Tensor


def elementwise_error_ratio(
    error: Tensor, state: Tensor, new_state: Tensor, rtol: float, atol: float
) -> Tensor:
    """Returns the root mean square of `error / (atol + rtol max(|state|, |new_state|))` per row.

    The usual mixed norm (Hairer, Nørsett, Wanner, "Solving ODEs I", section II.4): a step is
    acceptable if the ratio is at most 1.
    """
    scale = atol + rtol * tf.maximum(tf.abs(state), tf.abs(new_state))
    return tf.sqrt(tf.reduce_mean(tf.square(error / scale), axis=-1))


def _no_vjp(time: Tensor, state: Tensor, cotangent: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
    raise NotImplementedError(
        "Expected a System with vjp for its adjoint, got one without. Give it a vjp."
    )


def _no_split(state: Tensor) -> Split:
    raise NotImplementedError(
        "Expected a System with split for an unrolled run, got one without. Give it a split."
    )


class System(NamedTuple):
    """A batch of independent initial value problems dy/dt = f(t, y; c), one per row.

    Rows never mix: row i of every result depends only on row i of the arguments. Therefore every
    row can have its own step size.

    Attributes:
        derivative: `(time [B], state [B, P]) -> [B, P]`, the right-hand side f.
        jacobian_product: `(time, state, vector [B, P]) -> [B, P]`, a linear map of `vector` with
            the eigenvalues of df/dy (the Jacobian or its transpose).
        vjp: `(time, state, cotangent [B, P]) -> ([B, P], constants)`: the products of the
            transposed Jacobians df/dy and df/dc with `cotangent`; `constants` is a tuple with one
            tensor, of leading dimension B, for every constant c. Only adjoints need it.
        second_derivative: `(time, state, derivative [B, P]) -> [B, P]`, d²y/dt² where dy/dt is
            `derivative`. Only dense output of high order needs it; None if there is none.
        error_ratio: the norm in which local errors are compared with the tolerances.
        copies: how many such batches share the memory.
        split: `(state) -> Split`, the same problems with lists of tensors in place of vectors. Only
            unrolled runs need it.
    """

    derivative: Callable[[Tensor, Tensor], Tensor]
    jacobian_product: Callable[[Tensor, Tensor, Tensor], Tensor]
    vjp: Callable[[Tensor, Tensor, Tensor], tuple[Tensor, tuple[Tensor, ...]]] = _no_vjp
    second_derivative: Callable[[Tensor, Tensor, Tensor], Tensor] | None = None
    error_ratio: Callable[[Tensor, Tensor, Tensor, float, float], Tensor] = elementwise_error_ratio
    copies: int = 1
    split: Callable[[Tensor], Split] = _no_split


class Split(NamedTuple):
    """A batch of problems whose state is a list of tensors `[B, ...]`, its parts.

    Attributes:
        derivative: `(time [B], state) -> list`, the right-hand side.
        state: the parts of the state that was split.
        layout: where the parts are in a vector.
        constants: everything that the right-hand side holds constant, in parts as well.
    """

    derivative: Callable[[Tensor, list[Tensor]], list[Tensor]]
    state: list[Tensor]
    layout: Layout
    constants: list[Tensor]
