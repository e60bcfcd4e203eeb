"""LiteRT files: their size, their difference to the learner, and the time of one adaptation.

    python -m benchmarks.lite
    python -m benchmarks.lite --workdir=runs/omniglot --data_dir=DATA

Without --workdir: sine waves and Alpine functions, of which dense networks adapt as a whole. With
it: the network of that run, of which the last layer adapts in five steps of 0.4. On five unseen
tasks, the answers of `adapt_and_predict`, and those of `adapt` and `predict_with`, are compared
with `learner.adapt`. Times are the fastest of many, in milliseconds, on one thread.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import TypeAlias

import numpy as np

import amaml_tf as amaml
from amaml_tf.commands import flags, running
from amaml_tf.experiment import Experiment
from amaml_tf.saved_model.lite import lite_model
from amaml_tf.tasks import TaskFamily
from amaml_tf.training import restore

#: Support inputs, support targets and query inputs.
Task: TypeAlias = tuple[np.ndarray, np.ndarray, np.ndarray]


def main(kind: type[Experiment] = Experiment) -> None:
    """Measures, and prints a row for each network."""
    print("| network | file | `adapt` | `predict_with`, one input | `learner.adapt` | difference |")
    print("|---|---|---|---|---|---|")
    if flags.FLAGS.workdir:
        experiment = flags.trained_experiment(kind)
        family = experiment.make_family()
        trained = experiment.make_learner(family)
        restore(trained, flags.workdir())
        head = amaml.MetaLearner(trained.model, amaml.algorithms.ANIL(0.4, 5))
        head.compile(loss=family.loss, jit_compile="off")
        print(row(f"{experiment.task}, the head", head, tasks_of(family)))
        return
    for name, family, size in (
        ("sinusoid", amaml.tasks.SinusoidFamily(num_support=10, num_query=10), 1),
        ("Alpine", amaml.tasks.AlpineFamily(num_support=50, num_query=50), 2),
    ):
        model = amaml.models.multilayer_perceptron((size,), 1, (40, 40), seed=0)
        flow = amaml.GradientFlow(final_time=0.5)
        learner = amaml.MetaLearner(model, amaml.algorithms.AdjointMAML(flow))
        learner.compile(loss="mse", jit_compile="off")
        print(row(name, learner, tasks_of(family)), flush=True)


def tasks_of(family: TaskFamily) -> list[Task]:
    """Returns five unseen tasks."""
    (x, y), (query_x, _) = next(iter(family.episodes("test", batch_size=5, num_batches=1)))
    arrays = x.numpy(), y.numpy(), query_x.numpy()
    return list(zip(*arrays, strict=True))


def row(name: str, learner: amaml.MetaLearner, tasks: Sequence[Task]) -> str:
    """Returns a row of the table."""
    from ai_edge_litert.interpreter import Interpreter

    content = lite_model(learner, len(tasks[0][0]))
    lite = Interpreter(model_content=content, num_threads=1)
    runners = {each: lite.get_signature_runner(each) for each in lite.get_signature_list()}
    adapt, predict_with = runners["adapt"], runners["predict_with"]
    differences = []
    for x, y, query_x in tasks:
        expected = learner.adapt((x, y)).predict(query_x, verbose=0)
        at_once = runners["adapt_and_predict"](support_x=x, support_y=y, query_x=query_x)
        adapted = adapt(support_x=x, support_y=y)
        given = {n: v for n, v in adapted.items() if n in predict_with.get_input_details()}
        later = predict_with(x=query_x, **given)
        differences += [abs(a["predictions"] - expected).max() for a in (at_once, later)]
    x, y, query_x = tasks[0]
    milliseconds = (
        fastest(lambda: adapt(support_x=x, support_y=y), 100),
        fastest(lambda: predict_with(x=query_x[:1], **given), 100),
        fastest(lambda: learner.adapt((x, y)), 10),
    )
    cells = [f"{len(content) / 1000:.0f} kB", *(f"{each:.3g}" for each in milliseconds)]
    return f"| {' | '.join([name, *cells, f'{max(differences):.1g}'])} |"


def fastest(call: Callable[[], object], count: int) -> float:
    """Returns the milliseconds of the fastest of several calls, after a first one."""
    call()
    seconds = []
    for _ in range(count):
        start = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - start)
    return 1000 * min(seconds)


if __name__ == "__main__":
    running.run(main)
