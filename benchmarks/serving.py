"""The latency of an export's signatures, compared with `learner.adapt`.

    python -m benchmarks.serving --output=FOLDER

Two networks: a dense one (sinusoid), and a convolutional one with the shapes of Omniglot, on random
images. In one process: `adapt_and_predict` and `predict_with` in a session on the SavedModel, as a
model server runs them; `learner.adapt` in Python; and one adaptation by LiteRT, where its
interpreter is installed. The first request is told separately; of the later ones, the median and
the 99th percentile. Writes a table.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import pathlib
import tempfile
import time
from collections.abc import Callable, Mapping

import keras
import numpy as np
import tensorflow as tf
from absl import app, flags

import amaml_tf as amaml
from amaml_tf.errors import UsageError
from amaml_tf.files import write_atomically
from amaml_tf.provenance import provenance
from amaml_tf.saved_model.lite import lite_model

Request = Mapping[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class Latency:
    """Seconds: of the first request, and of the later ones the median and 99th percentile."""

    first: float
    median: float
    late: float


def measured(call: Callable[[], object], count: int) -> Latency:
    """Calls a function once, and then `count` times."""
    seconds = []
    for _ in range(count + 1):
        start = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - start)
    first, *later = seconds
    return Latency(first, float(np.median(later)), float(np.percentile(later, 99)))


class Session:
    """A session on an export, as a model server has one."""

    def __init__(self, path: pathlib.Path) -> None:
        graph = tf.Graph()
        self._session = tf.compat.v1.Session(graph=graph)
        with graph.as_default():
            loaded = tf.compat.v1.saved_model.load(self._session, ["serve"], str(path))
        self._signatures = loaded.signature_def

    def call(self, name: str, request: Request) -> Mapping[str, np.ndarray]:
        """Returns the outputs of a signature."""
        signature = self._signatures[name]
        feeds = {signature.inputs[each].name: value for each, value in request.items()}
        fetches = {each: info.name for each, info in signature.outputs.items()}
        return self._session.run(fetches, feeds)


def sinusoid() -> tuple[amaml.MetaLearner, Request]:
    """Returns a dense network with 10 support examples."""
    model = amaml.models.multilayer_perceptron((1,), 1, (40, 40), seed=0)
    learner = amaml.MetaLearner(
        model, amaml.algorithms.AdjointMAML(amaml.GradientFlow(final_time=0.5))
    )
    learner.compile(loss="mse")
    x = np.random.default_rng(0).uniform(-5, 5, (10, 1)).astype("float32")
    return learner, {"support_x": x, "support_y": np.sin(x), "query_x": x}


def images() -> tuple[amaml.MetaLearner, Request]:
    """Returns a convolutional network with 5 support images, of which the head adapts."""
    model = amaml.models.convolutional_network((28, 28, 1), 5, filters=32, seed=0)
    learner = amaml.MetaLearner(model, amaml.algorithms.ANIL(0.4, 5))
    learner.compile(loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    x = np.random.default_rng(0).uniform(size=(5, 28, 28, 1)).astype("float32")
    return learner, {"support_x": x, "support_y": np.arange(5, dtype="int32"), "query_x": x}


def latencies(learner: amaml.MetaLearner, request: Request, count: int) -> dict[str, Latency]:
    """Returns the latency of each way to adapt or to predict."""
    support = request["support_x"], request["support_y"]
    with tempfile.TemporaryDirectory() as folder:
        x, y = (value[np.newaxis] for value in support)
        episodes = [((x, y), (x, y))]  # a random network needs some statistics
        session = Session(amaml.save_initialization(learner, folder, statistics_from=episodes))
        found = {
            "learner.adapt": measured(lambda: learner.adapt(support), count),
            "adapt_and_predict": measured(
                lambda: session.call("adapt_and_predict", request), count
            ),
        }
        answer = session.call("adapt", {k: v for k, v in request.items() if k != "query_x"})
    given = {k: v for k, v in answer.items() if k.startswith(("parameter_", "statistic_"))}
    given["x"] = request["query_x"]
    found["predict_with"] = measured(lambda: session.call("predict_with", given), count)
    if importlib.util.find_spec("ai_edge_litert") is not None:
        found |= _lite(learner, request, count)
    return found


def _lite(learner: amaml.MetaLearner, request: Request, count: int) -> dict[str, Latency]:
    from ai_edge_litert.interpreter import Interpreter

    try:
        content = lite_model(learner, len(request["support_x"]))
    except UsageError:
        return {}
    runner = Interpreter(model_content=content).get_signature_runner("adapt_and_predict")
    name = f"LiteRT, a file of {len(content) / 1000:.0f} kB"
    return {name: measured(lambda: runner(**request), count)}


def table(results: Mapping[str, Mapping[str, Latency]]) -> str:
    """Returns the table of all latencies, in milliseconds and as ratios."""
    lines = [
        "| network | call | first | median | 99% | median, ratio | 99%, ratio |",
        "|---|---|---|---|---|---|---|",
    ]
    for network, found in results.items():
        base = found["learner.adapt"]
        for call, each in found.items():
            values = (f"{1000 * v:.3g}" for v in (each.first, each.median, each.late))
            ratios = (f"{each.median / base.median:.2g}", f"{each.late / base.late:.2g}")
            cells = (network, f"`{call}`", *values, *ratios)
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def main(_: list[str]) -> None:
    """Measures and writes."""
    results = {
        name: latencies(*make(), flags.FLAGS.count)
        for name, make in (("dense, 10 examples", sinusoid), ("images, 5 examples", images))
    }
    facts = "\n".join(
        f"- {name}: `{value}`" for name, value in provenance("python -m benchmarks.serving").items()
    )
    text = (
        "# Latency of an export\n\nMilliseconds of one request in a session on the SavedModel, "
        "without a network between, of\n`learner.adapt` in Python, and of LiteRT on the same "
        f"processor. {flags.FLAGS.count} requests after the first. Ratios are to `learner.adapt`."
        f"\n\n{table(results)}\n\n{facts}\n"
    )
    write_atomically(pathlib.Path(flags.FLAGS.output) / "serving.md", text)
    print(text)


if __name__ == "__main__":  # here, because tests import this beside commands with such flags
    flags.DEFINE_string("output", None, "Folder of the table.", required=True)
    flags.DEFINE_integer("count", 200, "Requests after the first.", lower_bound=10)
    app.run(main)
