"""Meta-gradients in JAX, as its users write them; for comparison."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import diffrax
import jax
import jax.numpy as jnp

Parameters = list[Any]
Predict = Callable[[Parameters, Any], Any]


def dense(parameters: Parameters, x: jax.Array) -> jax.Array:
    """Returns the outputs of the dense network: kernels and biases, tanh between layers."""
    *hidden, kernel, bias = parameters
    for i in range(0, len(hidden), 2):
        x = jnp.tanh(x @ hidden[i] + hidden[i + 1])
    return x @ kernel + bias


def convolutional(parameters: Parameters, x: jax.Array) -> jax.Array:
    """Returns the outputs of the CNN: blocks of a kernel, a scale and an offset; a dense layer."""
    *blocks, kernel, bias = parameters
    for i in range(0, len(blocks), 3):
        weights, scale, offset = blocks[i : i + 3]
        x = jax.lax.conv_general_dilated(
            x, weights, (2, 2), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )
        mean, variance = jnp.mean(x, (0, 1, 2)), jnp.var(x, (0, 1, 2))
        x = jax.nn.relu((x - mean) * jax.lax.rsqrt(variance + 1e-3) * scale + offset)
    return jnp.mean(x, (1, 2)) @ kernel + bias


def squared(outputs: jax.Array, y: jax.Array) -> jax.Array:
    """Returns the mean squared error."""
    return jnp.mean(jnp.square(outputs - y))


def cross_entropy(outputs: jax.Array, y: jax.Array) -> jax.Array:
    """Returns the mean cross-entropy of logits with class numbers."""
    return -jnp.mean(jnp.take_along_axis(jax.nn.log_softmax(outputs), y[:, None], axis=1))


def descent(
    predict: Predict, loss: Callable[[Any, Any], Any], step_size: float, num_steps: int, remat: bool
) -> Callable[[Parameters, Any], Any]:
    """Returns a compiled program for the loss and the meta-gradient of steps of gradient descent.

    The steps are a `scan`; with `remat`, their activations are computed again.
    """

    def adapted(u: Parameters, x: Any, y: Any) -> Parameters:
        def step(u: Parameters, _: Any) -> tuple[Parameters, None]:
            slopes = jax.grad(lambda u: loss(predict(u, x), y))(u)
            return [w - step_size * slope for w, slope in zip(u, slopes, strict=True)], None

        return jax.lax.scan(jax.checkpoint(step) if remat else step, u, None, num_steps)[0]

    return _meta_gradient(adapted, predict, loss)


def flow(
    predict: Predict, loss: Callable[[Any, Any], Any], final_time: float, rtol: float, atol: float
) -> Callable[[Parameters, Any], Any]:
    """Returns a compiled program for the meta-gradient of the flow by diffrax's default adjoint."""

    def slope(_: Any, u: Parameters, examples: Any) -> Parameters:
        x, y = examples
        slopes = jax.grad(lambda u: loss(predict(u, x), y))(u)
        return [-slope for slope in slopes]

    def adapted(u: Parameters, x: Any, y: Any) -> Parameters:
        solution = diffrax.diffeqsolve(
            diffrax.ODETerm(slope),
            diffrax.Dopri5(),
            0.0,
            final_time,
            None,
            u,
            (x, y),
            stepsize_controller=diffrax.PIDController(rtol=rtol, atol=atol),
            max_steps=16384,
        )
        return [leaf[0] for leaf in solution.ys]

    return _meta_gradient(adapted, predict, loss)


def _meta_gradient(
    adapted: Callable[..., Parameters], predict: Predict, loss: Callable[[Any, Any], Any]
) -> Callable[[Parameters, Any], Any]:
    def query_loss(parameters: Parameters, episodes: Any) -> Any:
        def of_task(support: Any, query: Any) -> Any:
            u = adapted(parameters, *support)
            return loss(predict(u, query[0]), query[1])

        return jnp.mean(jax.vmap(of_task)(*episodes))

    return jax.jit(jax.value_and_grad(query_loss))
