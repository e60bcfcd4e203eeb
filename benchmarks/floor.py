"""The time of a meta-gradient over its floor: the same gradients and products, back to back.

    python -m benchmarks.floor --output=benchmark_results

The floor of a case is one compiled program that calls the gradient of the support loss, and its
Hessian-vector product, as often as the slowest task of the case did (evaluations that were repeated
are counted too), and the query gradient once. Nothing is recorded and no step size is chosen. Case
and floor take turns in one process. Writes floor.json and a figure.
"""

from __future__ import annotations

import pathlib
from collections.abc import Callable
from typing import Any

import numpy as np
from absl import app, flags

from amaml_tf.episodes import Episodes
from amaml_tf.learner.meta_learner import MetaLearner
from benchmarks.measuring import in_turn, write
from benchmarks.networks import problem


def _flow(final_time: float) -> Callable[[Any], Any]:
    return lambda amaml: amaml.algorithms.AdjointMAML(amaml.GradientFlow(final_time=final_time))


def _maml(num_steps: int) -> Callable[[Any], Any]:
    return lambda amaml: amaml.algorithms.MAML(0.01, num_steps)


#: By name: the network, and what makes the algorithm from the package.
CASES: dict[str, tuple[str, Callable[[Any], Any]]] = {
    "flow to 0.1": ("dense", _flow(0.1)),
    "flow to 5": ("dense", _flow(5.0)),
    "flow to 50": ("dense", _flow(50.0)),
    "MAML 10 steps": ("dense", _maml(10)),
    "MAML 100 steps": ("dense", _maml(100)),
    "MAML 5000 steps": ("dense", _maml(5000)),
    "CNN: MAML 5 steps": ("convolutional", _maml(5)),
}


def floor_of(
    learner: MetaLearner, episodes: Episodes, num_gradients: int, num_products: int
) -> Callable[[], np.ndarray]:
    """Returns a program that makes so many gradients and products, and nothing else."""
    import tensorflow as tf

    function = learner.function
    (x, y), (query_x, query_y) = tf.nest.map_structure(tf.convert_to_tensor, episodes)
    num_tasks = tf.nest.flatten(x)[0].shape[0]

    @tf.function(jit_compile=learner.execution.jit_compile, autograph=False)
    def run(x: Any, y: Any, query_x: Any, query_y: Any) -> tuple[tf.Tensor, ...]:
        state = function.state()
        u, held = function.initialization(num_tasks)

        def descend(i: tf.Tensor, u: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
            return i + 1, u - 1e-6 * function.gradient(u, held, state, x, y)

        def multiply(i: tf.Tensor, v: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
            # At another point each time: XLA would compute what is the same in all only once.
            product = function.curvature(u + 1e-6 * v, held, state, v, x, y)[1]
            return i + 1, v - 1e-6 * product

        zero = tf.constant(0)
        _, u = tf.while_loop(lambda i, _: i < num_gradients, descend, (zero, u))
        loss, slope, _, _ = function.query_gradient(u, held, state, query_x, query_y)
        _, v = tf.while_loop(lambda i, _: i < num_products, multiply, (zero, slope))
        return tf.reduce_mean(loss), tf.reduce_mean(v, axis=0)

    return lambda: run(x, y, query_x, query_y)[0].numpy()


def measure(name: str) -> dict[str, Any]:
    """Returns the seconds of a case and of its floor, and their ratio."""
    import keras

    import amaml_tf as amaml

    network, make = CASES[name]
    model, loss, episodes = problem(network)
    learner = amaml.MetaLearner(model, make(amaml))
    learner.compile(keras.optimizers.SGD(), loss=loss)
    done = learner.meta_gradients(episodes).diagnostics
    forward, backward = done.forward, done.backward
    if backward is None:
        raise ValueError(f"Expected an algorithm with a backward pass, got {name}.")
    gradients = int(np.max(forward.num_evaluations + backward.num_evaluations))
    products = int(np.max(forward.num_jacobian_products + backward.num_vector_jacobian_products))
    seconds = in_turn(
        {
            "case": lambda: learner.meta_gradients(episodes).loss.numpy(),
            "floor": floor_of(learner, episodes, gradients, products),
        }
    )
    return {
        "name": name,
        "gradients": gradients,
        "products": products,
        "seconds": seconds["case"],
        "floor_seconds": seconds["floor"],
        "ratio": seconds["case"] / seconds["floor"],
    }


def draw(rows: list[dict[str, Any]], path: pathlib.Path) -> None:
    """Draws the ratio of each case as a bar."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 0.4 * len(rows) + 1), layout="constrained")
    axes = figure.subplots()
    bars = axes.barh([row["name"] for row in rows], [row["ratio"] for row in rows])
    axes.bar_label(bars, fmt="%.2f", padding=3)
    axes.axvline(1, color="0.3", linewidth=1)
    axes.margins(x=0.1)
    axes.invert_yaxis()
    axes.set_xlabel("time of a meta-gradient over its floor")
    figure.savefig(path, dpi=150)


def main(_: list[str]) -> None:
    """Measures the cases, prints a table and writes it."""
    rows = []
    print(f"{'':22}{'gradients':>10}{'products':>10}{'ms':>10}{'floor ms':>10}{'ratio':>7}")
    for name in flags.FLAGS.case:
        row = measure(name)
        rows.append(row)
        print(
            f"{name:22}{row['gradients']:10d}{row['products']:10d}{1e3 * row['seconds']:10.2f}"
            f"{1e3 * row['floor_seconds']:10.2f}{row['ratio']:7.2f}",
            flush=True,
        )
    write("floor", rows, flags.FLAGS.output)
    draw(rows, pathlib.Path(flags.FLAGS.output) / "floor.png")


if __name__ == "__main__":  # here, because tests import this beside others with such flags
    flags.DEFINE_string("output", "benchmark_results", "Folder for floor.json and .png.")
    flags.DEFINE_multi_enum("case", list(CASES), list(CASES), "Case to measure. Default: all.")
    app.run(main)
