"""Problems that carry their solution, shared by the tests of the numerics."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, NamedTuple

import keras
import numpy as np
import tensorflow as tf

import amaml_tf as amaml
from amaml_tf.functional.model import FunctionalModel
from amaml_tf.solvers.system import System


class Problem(NamedTuple):
    """A model with its loss, and a batch of episodes."""

    model: keras.Model
    loss: str
    episodes: Any

    @property
    def parameters(self) -> list[tf.Tensor]:
        return [tf.convert_to_tensor(v) for v in self.model.trainable_variables]

    def function(self, **options: Any) -> FunctionalModel:
        return FunctionalModel(self.model, self.loss, **options)


def _regression_episodes(rng: Any, x_shape: tuple[int, ...], num_tasks: int, dtype: str) -> Any:
    def points(count: int) -> tuple[tf.Tensor, tf.Tensor]:
        x = rng.normal(size=(num_tasks, count, *x_shape))
        y = np.sin(x.reshape(num_tasks, count, -1)[..., :1] + rng.normal(size=(num_tasks, 1, 1)))
        return tf.constant(x, dtype), tf.constant(y, dtype)

    return points(6), points(5)


def dense(num_tasks: int = 3, dtype: str = "float64", units: int = 5) -> Problem:
    """A tanh network."""
    keras.utils.set_random_seed(1)
    model = keras.Sequential(
        [
            keras.Input((2,), dtype=dtype),
            keras.layers.Dense(units, "tanh", dtype=dtype),
            keras.layers.Dense(1, dtype=dtype),
        ]
    )
    rng = np.random.default_rng(2)
    return Problem(model, "mse", _regression_episodes(rng, (2,), num_tasks, dtype))


def convolutional(num_tasks: int = 2, dtype: str = "float64") -> Problem:
    """A small convolutional classifier with batch normalization."""
    keras.utils.set_random_seed(3)
    model = keras.Sequential(
        [
            keras.Input((5, 5, 1), dtype=dtype),
            keras.layers.Conv2D(2, 3, strides=2, padding="same", dtype=dtype),
            keras.layers.BatchNormalization(dtype=dtype),
            keras.layers.Activation("tanh", dtype=dtype),
            keras.layers.Flatten(dtype=dtype),
            keras.layers.Dense(3, "softmax", dtype=dtype),
        ]
    )
    rng = np.random.default_rng(4)

    def images() -> tuple[tf.Tensor, tf.Tensor]:
        labels = np.tile(np.arange(3), (num_tasks, 2))
        x = rng.normal(size=(num_tasks, 6, 5, 5, 1)) + labels[..., None, None, None]
        return tf.constant(x, dtype), tf.constant(labels)

    return Problem(model, "sparse_categorical_crossentropy", (images(), images()))


def linear(num_tasks: int = 2, dtype: str = "float64") -> Problem:
    """A linear model with mean square loss: the flow is linear, see `linear_solution`."""
    keras.utils.set_random_seed(5)
    model = keras.Sequential(
        [keras.Input((3,), dtype=dtype), keras.layers.Dense(1, use_bias=False, dtype=dtype)]
    )
    rng = np.random.default_rng(6)
    return Problem(model, "mse", _regression_episodes(rng, (3,), num_tasks, dtype))


class LinearSolution(NamedTuple):
    """Per task u(T) `[B, P]`, and the exact meta-gradients, of theta and of the final time."""

    adapted: np.ndarray
    gradient: np.ndarray
    time_gradient: float


def linear_solution(problem: Problem, final_time: float) -> LinearSolution:
    """L_S(u) = mean (x u - y)²: u(T) = u* + exp(-A T) (θ - u*), A = 2 xᵀx / n, A u* = 2 xᵀy / n."""
    (support_x, support_y), (query_x, query_y) = problem.episodes
    theta = problem.parameters[0].numpy()[:, 0]
    adapted, gradients, time_gradients = [], [], []
    for sx, sy, qx, qy in zip(
        *(v.numpy() for v in (support_x, support_y, query_x, query_y)), strict=True
    ):
        hessian = 2 * sx.T @ sx / len(sx)
        optimum = np.linalg.solve(hessian, 2 * sx.T @ sy[:, 0] / len(sx))
        values, vectors = np.linalg.eigh(hessian)
        propagator = vectors @ np.diag(np.exp(-values * final_time)) @ vectors.T
        u = optimum + propagator @ (theta - optimum)
        query_gradient = 2 * qx.T @ (qx @ u - qy[:, 0]) / len(qx)
        adapted.append(u)
        gradients.append(propagator @ query_gradient)
        time_gradients.append(-query_gradient @ hessian @ (u - optimum))
    return LinearSolution(
        np.array(adapted), np.mean(gradients, axis=0), float(np.mean(time_gradients))
    )


def unrolled_gradients(problem: Problem, step_size: float, num_steps: int) -> list[np.ndarray]:
    """The meta-gradient of gradient descent by reverse mode through the unrolled program."""
    function = problem.function()
    state = function.state()

    @tf.function
    def descend(u: list[tf.Tensor], x: tf.Tensor, y: tf.Tensor) -> list[tf.Tensor]:
        with tf.GradientTape() as tape:
            tape.watch(u)
            outputs, _ = function.predict(u, state, x, adapting=True)
            loss = function.loss(y, outputs)
        slopes = tape.gradient(loss, u)
        return [w - step_size * slope for w, slope in zip(u, slopes, strict=True)]

    def gradients(task: Any) -> list[tf.Tensor]:
        (support_x, support_y), (query_x, query_y) = task
        with tf.GradientTape() as tape:
            tape.watch(parameters)
            u = parameters
            for _ in range(num_steps):
                u = descend(u, support_x, support_y)
            outputs, _ = function.predict(u, state, query_x, adapting=False)
            loss = function.loss(query_y, outputs)
        return tape.gradient(loss, parameters)

    parameters = problem.parameters
    num_tasks = problem.episodes[0][0].shape[0]
    per_task = [
        gradients(tf.nest.map_structure(lambda v, i=i: v[i], problem.episodes))
        for i in range(num_tasks)
    ]
    return [np.mean([g.numpy() for g in column], axis=0) for column in zip(*per_task, strict=True)]


def loss_after_adaptation(problem: Problem, learner: Any) -> Callable[[], float]:
    """The meta-loss of the problem's episodes, as a function of what the learner is by then."""
    return lambda: float(np.mean(learner.predict_episodes(problem.episodes).after[0]))


def directional_differences(
    loss: Callable[[], float], variables: Any, epsilon: float = 1e-5, seed: int = 0
) -> tuple[float, list[np.ndarray]]:
    """Derivative of `loss` along a random direction, by central differences, and the direction."""
    rng = np.random.default_rng(seed)
    direction = [rng.normal(size=v.shape) for v in variables]
    start = [v.numpy() for v in variables]
    losses = []
    for sign in (1, -1):
        for variable, value, way in zip(variables, start, direction, strict=True):
            variable.assign(value + sign * epsilon * way)
        losses.append(loss())
    for variable, value in zip(variables, start, strict=True):
        variable.assign(value)
    return (losses[0] - losses[1]) / (2 * epsilon), direction


def along(gradients: Any, direction: Any) -> float:
    """Derivative along a direction, by gradients."""
    return sum(float(np.sum(g * d)) for g, d in zip(gradients, direction, strict=True))


def relative_error(values: Any, expected: Any) -> float:
    """Norm of the difference of two lists of arrays over the norm of `expected`."""
    flat = [np.concatenate([np.ravel(v) for v in side]) for side in (values, expected)]
    return float(np.linalg.norm(flat[0] - flat[1]) / np.linalg.norm(flat[1]))


def smooth_scalar() -> tuple[System, Any]:
    """A smooth nonlinear problem that depends on time, solved by y(t) = sin t + e^-t."""

    def exact(time: Any) -> Any:
        return np.sin(time) + np.exp(-time)

    def derivative(time: tf.Tensor, y: tf.Tensor) -> tf.Tensor:
        t = time[:, tf.newaxis]
        y_exact = tf.sin(t) + tf.exp(-t)
        return tf.cos(t) - tf.exp(-t) - (tf.square(y) - tf.square(y_exact))

    def jacobian_product(time: tf.Tensor, y: tf.Tensor, vector: tf.Tensor) -> tf.Tensor:
        del time
        return -2 * y * vector

    return System(derivative, jacobian_product), exact


def algorithm(name: str, flow: amaml.GradientFlow) -> amaml.algorithms.Algorithm:
    """The algorithm of that name, with `flow` where it takes one, and else with three steps."""
    factory: Any = amaml.algorithms.REGISTRY[name]
    if "flow" in inspect.signature(factory).parameters:
        return factory(flow)
    return factory(step_size=0.1, num_steps=3)
