"""The metric of an export that gets one query a request, beside that of the evaluator.

    python -m benchmarks.one_query --workdir=runs/omniglot --data_dir=DATA --num_eval_episodes=200

On the same unseen episodes: the evaluator with the statistics of the support set, the evaluator
with those of the query set (transductive), and a session on the SavedModel, as a model server runs
it, which adapts and predicts for a single query in each request.
"""

from __future__ import annotations

import dataclasses
import tempfile
from typing import Any

import numpy as np
import tensorflow as tf
from absl.flags import DEFINE_integer

from amaml_tf.commands import flags, running
from amaml_tf.evaluation import Estimate
from amaml_tf.experiment import Experiment
from amaml_tf.learner.meta_learner import MetaLearner
from amaml_tf.learner.task_metrics import TaskMetrics
from amaml_tf.saved_model import save_initialization
from amaml_tf.tasks import TaskFamily
from amaml_tf.training import restore
from benchmarks.serving import Session

_QUERIES = DEFINE_integer("queries", 15, "Requests for each episode.", lower_bound=1)
_TASKS_AT_A_TIME = 20


def main(kind: type[Experiment] = Experiment) -> None:
    """Measures, and prints a line for each."""
    experiment, workdir = flags.trained_experiment(kind), flags.workdir()
    family = experiment.make_family()
    learner = experiment.make_learner(family)
    restore(learner, workdir)
    (metric,) = _metric_of(family)
    name = metric.name
    for statistics in ("support", "batch"):
        chosen = dataclasses.replace(experiment, query_statistics=statistics)
        found = chosen.measure(chosen.make_evaluator(learner, family), family)
        print(f"evaluator, statistics of {statistics}: {name} {found.after[name]}", flush=True)
    values = one_by_one(experiment, family, learner)[: experiment.num_eval_episodes]
    print(f"export, {_QUERIES.value} requests of one query: {name} {Estimate.of(values)}")


def one_by_one(experiment: Experiment, family: TaskFamily, learner: MetaLearner) -> np.ndarray:
    """Returns the first metric of each episode, of queries that were requested one by one."""
    count, measure = experiment.num_eval_episodes, TaskMetrics(_metric_of(family))
    values = []
    with tempfile.TemporaryDirectory() as folder:
        supports = family.episodes("train", batch_size=8)
        session = Session(save_initialization(learner, folder, statistics_from=supports))
        for (x, y), (query_x, query_y) in family.episodes(
            experiment.eval_split,
            batch_size=_TASKS_AT_A_TIME,
            seed=experiment.eval_seed,
            num_batches=-(-count // _TASKS_AT_A_TIME),
        ):
            every = max(1, query_x.shape[1] // _QUERIES.value)
            query_x, query_y = query_x[:, ::every], query_y[:, ::every]
            answers = [_answers(session, x[task], y[task], query_x[task]) for task in range(len(x))]
            values.extend(next(iter(measure(query_y, np.stack(answers)).values())).numpy())
    return np.array(values)


def _metric_of(family: TaskFamily) -> list[Any]:
    """Returns the first metric of a family."""
    return list(family.metrics())[:1]


def _answers(session: Session, x: tf.Tensor, y: tf.Tensor, query_x: tf.Tensor) -> np.ndarray:
    support = {"support_x": x.numpy(), "support_y": y.numpy()}
    return np.concatenate(
        [
            session.call("adapt_and_predict", {**support, "query_x": one[np.newaxis]})[
                "predictions"
            ]
            for one in query_x.numpy()
        ]
    )


if __name__ == "__main__":
    running.run(main)
