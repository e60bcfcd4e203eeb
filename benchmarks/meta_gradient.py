"""A meta-gradient beside JAX, diffrax and PyTorch, which take turns in one process.

    python -m benchmarks.meta_gradient --output=docs/results

*dense* is the network of the paper on five Alpine tasks of 100 examples; *CNN* is 4x64 on five
tasks of 25 images. T is step size times steps. The error is relative to the same program in
float64; for flows, to the exact flow. Peers come with the extra `benchmark`; those that are not
installed are left out. Writes meta_gradient.json, .md and .png.
"""

from __future__ import annotations

import importlib.util
import pathlib
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import numpy as np
from absl import app, flags

from amaml_tf.algorithms import Algorithm
from amaml_tf.episodes import Episodes
from amaml_tf.learner.meta_learner import MetaLearner
from benchmarks.measuring import in_turn, write
from benchmarks.networks import problem

_STEP_SIZE = 0.01
_RTOL, _ATOL = 1e-3, 1e-6  # of diffrax

Call: TypeAlias = Callable[[], list[np.ndarray]]
Weights: TypeAlias = Sequence[np.ndarray]


def learner_of(network: str, algorithm: Algorithm, weights: Weights, dtype: str) -> MetaLearner:
    """Returns a compiled learner of the network with `weights`, in a precision."""
    import keras

    import amaml_tf as amaml

    if network == "dense":
        model = amaml.models.multilayer_perceptron((2,), 1, dtype=dtype)
        loss: Any = "mse"
    else:
        model = amaml.models.convolutional_network((28, 28, 1), 5, filters=64, dtype=dtype)
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    for variable, value in zip(model.trainable_variables, weights, strict=True):
        variable.assign(value)
    learner = amaml.MetaLearner(model, algorithm)
    learner.compile("sgd", loss=loss)
    return learner


def ours(
    network: str,
    algorithm: Algorithm,
    weights: Weights,
    episodes: Episodes,
    dtype: str = "float32",
) -> Call:
    """Returns what computes the meta-gradient with this library."""
    import tensorflow as tf

    learner = learner_of(network, algorithm, weights, dtype)

    def converted(v: Any) -> tf.Tensor:
        return tf.cast(v, dtype) if np.issubdtype(v.dtype, np.floating) else tf.constant(v)

    batch = tf.nest.map_structure(converted, episodes)
    return lambda: [g.numpy() for g in learner.meta_gradients(batch).gradients]


def in_jax(program: Callable[[Any, Any], Any], weights: Weights, episodes: Episodes) -> Call:
    """Returns what computes the meta-gradient with a program of `jax_programs`."""
    import jax

    given = jax.tree.map(jax.numpy.asarray, (list(weights), episodes))
    return lambda: [np.asarray(g) for g in program(*given)[1]]


def jax_calls(
    network: str, num_steps: int, weights: Weights, episodes: Episodes
) -> dict[str, Call]:
    """Returns the peers in JAX, by name; empty if it is not installed."""
    if not (importlib.util.find_spec("jax") and importlib.util.find_spec("diffrax")):
        print("JAX and diffrax are left out: pip install 'amaml-tf[benchmark]' brings them.")
        return {}
    from benchmarks import jax_programs as programs

    predict = programs.dense if network == "dense" else programs.convolutional
    loss = programs.squared if network == "dense" else programs.cross_entropy
    calls = {
        name: in_jax(
            programs.descent(predict, loss, _STEP_SIZE, num_steps, remat), weights, episodes
        )
        for name, remat in (("JAX scan", False), ("JAX scan, remat", True))
    }
    if network == "dense":
        flow = programs.flow(predict, loss, _STEP_SIZE * num_steps, _RTOL, _ATOL)
        calls["diffrax, flow"] = in_jax(flow, weights, episodes)
    return calls


def torch_calls(num_steps: int, weights: Weights, episodes: Episodes) -> dict[str, Call]:
    """Returns the peer in PyTorch, by name; empty if it is not installed."""
    if not importlib.util.find_spec("torch"):
        print("PyTorch is left out: pip install 'amaml-tf[benchmark]' brings it.")
        return {}
    from benchmarks import torch_programs as programs

    parameters, tensors = programs.parameters_of(weights), programs.tensors_of(episodes)
    return {
        "PyTorch": lambda: programs.meta_gradient(parameters, tensors, _STEP_SIZE, num_steps),
    }


def measure(network: str, num_steps: int) -> list[dict[str, Any]]:
    """Returns a row for each program, which took turns."""
    import tensorflow as tf

    import amaml_tf as amaml

    model, _, episodes = problem("dense" if network == "dense" else "convolutional")
    weights = [v.numpy() for v in model.trainable_variables]
    episodes = tf.nest.map_structure(np.asarray, episodes)
    final_time = _STEP_SIZE * num_steps
    maml = amaml.algorithms.MAML(_STEP_SIZE, num_steps)
    calls = {"amaml-tf, MAML": ours(network, maml, weights, episodes)}
    exact = {"descent": ours(network, maml, weights, episodes, "float64")()}
    if network == "dense":
        flow = amaml.algorithms.AdjointMAML(amaml.GradientFlow(final_time=final_time))
        calls["amaml-tf, flow"] = ours(network, flow, weights, episodes)
        reference = amaml.solvers.DormandPrince(1e-10, 1e-12, max_num_steps=65536)
        precise = amaml.GradientFlow(final_time=final_time, solver=reference)
        algorithm = amaml.algorithms.AdjointMAML(precise)
        exact["flow"] = ours(network, algorithm, weights, episodes, "float64")()
    calls |= jax_calls(network, num_steps, weights, episodes)
    if network != "dense":
        calls |= torch_calls(num_steps, weights, episodes)
    seconds = in_turn(calls, budget=20.0)
    return [
        {
            "network": network,
            "steps": num_steps,
            "time": final_time,
            "program": name,
            "seconds": seconds[name],
            "error": distance(call(), exact["flow" if "flow" in name else "descent"]),
        }
        for name, call in calls.items()
    ]


def distance(found: list[np.ndarray], exact: list[np.ndarray]) -> float:
    """Returns the relative distance of two gradients."""
    a, b = (np.concatenate([np.ravel(g).astype(float) for g in part]) for part in (found, exact))
    return float(np.linalg.norm(a - b) / np.linalg.norm(b))


def report(rows: list[dict[str, Any]]) -> str:
    """Returns the table in Markdown."""
    lines = [
        "# A meta-gradient beside JAX, diffrax and PyTorch",
        "",
        "Medians of calls in turn in one process, float32. The error is relative to the same "
        "program in float64; for flows, to the exact flow.",
        "",
        "| network | steps of 0.01 | program | ms | error |",
        "|---|---|---|---|---|",
    ]
    lines += [
        f"| {row['network']} | {row['steps']} | {row['program']} | {1e3 * row['seconds']:.4g} "
        f"| {row['error']:.1e} |"
        for row in rows
    ]
    return "\n".join([*lines, ""])


def draw(rows: list[dict[str, Any]], path: pathlib.Path) -> None:
    """Draws the seconds of the programs, a panel for each problem."""
    from matplotlib.figure import Figure

    problems = list(dict.fromkeys((row["network"], row["steps"]) for row in rows))
    figure = Figure(figsize=(3.6 * len(problems), 2.6), layout="constrained")
    for axis, one in zip(
        figure.subplots(1, len(problems), squeeze=False)[0], problems, strict=True
    ):
        shown = [row for row in rows if (row["network"], row["steps"]) == one]
        bars = axis.barh([r["program"] for r in shown], [1e3 * r["seconds"] for r in shown])
        axis.bar_label(bars, fmt="%.3g", padding=3)
        axis.margins(x=0.2)
        axis.invert_yaxis()
        axis.set(title=f"{one[0]}, {one[1]} steps", xlabel="ms a meta-gradient")
    figure.savefig(path, dpi=150)


def main(_: list[str]) -> None:
    """Measures all problems, prints a table and writes it."""
    from amaml_tf.files import write_atomically

    problems = [("dense", int(steps)) for steps in flags.FLAGS.steps]
    problems += [("CNN", flags.FLAGS.cnn_steps)] if flags.FLAGS.cnn_steps else []
    rows: list[dict[str, Any]] = []
    folder = pathlib.Path(flags.FLAGS.output)
    for network, steps in problems:
        for row in measure(network, steps):
            rows.append(row)
            print(
                f"{network:6}{steps:6d} {row['program']:20}{1e3 * row['seconds']:10.2f} ms  "
                f"error {row['error']:.1e}",
                flush=True,
            )
        # What there is so far: the next problem may take long.
        write("meta_gradient", rows, flags.FLAGS.output)
        write_atomically(folder / "meta_gradient.md", report(rows))
        draw(rows, folder / "meta_gradient.png")


if __name__ == "__main__":  # here, because tests import this beside others with such flags
    flags.DEFINE_string("output", "benchmark_results", "Folder of the results.")
    flags.DEFINE_list("steps", ["10", "500", "5000"], "Steps of 0.01 of the dense network.")
    flags.DEFINE_integer("cnn_steps", 5, "Steps of the CNN; 0: leave it out.")
    app.run(main)
