"""`python -m amaml_tf.quickstart`: a complete example, about a minute on two cores.

It learns an initialization from sine waves, and adapts to unseen sine waves from it and from two
other initializations. It draws the result, exports the initialization and adapts once more through
the export.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import TypeAlias

import absl.logging
import keras
import numpy as np
import tensorflow as tf

from amaml_tf import models, tasks
from amaml_tf.algorithms import AdjointMAML
from amaml_tf.episodes import Episodes, Examples
from amaml_tf.flow.gradient_flow import GradientFlow
from amaml_tf.functional import execution
from amaml_tf.learner.meta_learner import MetaLearner
from amaml_tf.plots import AdaptationCurves, draw_adaptation
from amaml_tf.saved_model import save_initialization

Weights: TypeAlias = list[np.ndarray]
#: Outputs before and after adaptation.
Predictions: TypeAlias = tuple[np.ndarray, np.ndarray]

LEARNED, JOINT, RANDOM = "learned initialization", "trained jointly", "random initialization"

FINAL_TIME = 0.5
META_BATCH_SIZE = 10
NUM_EPOCHS = 5
NUM_UNSEEN_TASKS = 100
NUM_DRAWN_TASKS = 4
GRID_POINTS = 100
# Two programs that round differently choose slightly different steps.
AGREEMENT = 0.02


def main(directory: str = "quickstart", num_meta_steps: int = 500) -> dict[str, float]:
    """Runs the whole example.

    Args:
        directory: folder for the picture and the export; created if needed.
        num_meta_steps: number of meta-steps, a multiple of 5.

    Returns:
        The error on unseen tasks after adaptation, by the name of the initialization.
    """
    start_time = time.monotonic()
    family = tasks.SinusoidFamily(num_support=20, num_query=20)
    print("Tasks: sine waves of unknown amplitude and phase, each to be learned from 20 examples.")
    print(
        f"Adaptation: gradient flow for T = {FINAL_TIME}, as 50 gradient descent steps of 0.01.\n"
    )

    learner = make_learner(network(), FINAL_TIME)
    num_tasks = num_meta_steps * META_BATCH_SIZE
    print(f"Learning an initialization from {num_tasks} tasks (compiling takes some seconds)")
    starts = {
        LEARNED: meta_train(learner, family, num_meta_steps),
        JOINT: train_jointly(network(), family, num_meta_steps),
        RANDOM: network().get_weights(),
    }
    unseen = unseen_tasks(family)
    predictions = {name: predict(learner, weights, unseen) for name, weights in starts.items()}
    errors = report(predictions, unseen)

    root = Path(directory)
    root.mkdir(parents=True, exist_ok=True)
    picture = root / "adaptation.png"
    draw(picture, starts, predictions, unseen)
    learner.model.set_weights(starts[LEARNED])
    export = save_initialization(learner, root / "export", check=False)  # it is checked next
    check_export(export, unseen, predictions[LEARNED][1])

    print(f"\nPicture     {picture}")
    print(f"SavedModel  {export} (reloaded, it adapts to a task as the learner does)")
    print(f"Done in {time.monotonic() - start_time:.0f} seconds.")
    return errors


def network() -> keras.Model:
    """Returns a small network with the same initial weights every time."""
    return models.multilayer_perceptron((1,), 1, hidden_units=(40, 40), seed=0)


def make_learner(model: keras.Model, final_time: float, jit_compile: str = "auto") -> MetaLearner:
    """Returns a learner of an initialization of `model`."""
    learner = MetaLearner(model, AdjointMAML(GradientFlow(final_time=final_time)))
    optimizer = keras.optimizers.Adam(1e-2, global_clipnorm=10.0)
    learner.compile(optimizer=optimizer, loss="mse", jit_compile=jit_compile)
    return learner


def meta_train(learner: MetaLearner, family: tasks.TaskFamily, num_meta_steps: int) -> Weights:
    """Returns the weights of the learned initialization."""
    learner.optimizer.learning_rate = keras.optimizers.schedules.CosineDecay(1e-2, num_meta_steps)
    # Keras's own bar for `fit` shows too much for a narrow terminal.
    verbose = 1 if sys.stdout.isatty() else 2
    bar = keras.utils.Progbar(num_meta_steps, verbose=verbose, stateful_metrics=["query loss"])

    def update(batch: int, logs: dict[str, float]) -> None:
        del batch
        bar.update(int(learner.optimizer.iterations), [("query loss", logs["loss"])])

    learner.fit(
        family.episodes("train", batch_size=META_BATCH_SIZE),
        epochs=NUM_EPOCHS,  # the loss that is shown is the mean over one epoch
        steps_per_epoch=num_meta_steps // NUM_EPOCHS,
        shuffle=False,
        verbose=0,
        callbacks=[keras.callbacks.LambdaCallback(on_train_batch_end=update)],
    )
    return learner.model.get_weights()


def train_jointly(model: keras.Model, family: tasks.TaskFamily, num_batches: int) -> Weights:
    """Returns the weights of `model` trained on the examples of all tasks, as if they were one."""

    def pooled(support: Examples, query: Examples) -> tuple[tf.Tensor, ...]:
        return tuple(
            tf.reshape(tf.concat(xy, axis=1), [-1, 1]) for xy in zip(support, query, strict=True)
        )

    episodes = family.episodes("train", batch_size=META_BATCH_SIZE, num_batches=num_batches)
    model.compile(optimizer=keras.optimizers.Adam(1e-2), loss="mse")
    model.fit(episodes.map(pooled), shuffle=False, verbose=0)
    return model.get_weights()


def unseen_tasks(family: tasks.SinusoidFamily) -> Episodes:
    """Returns one batch of test tasks whose query sets are their whole curves."""
    numbers = range(NUM_UNSEEN_TASKS)
    supports = [family.task_episode("test", number)[0] for number in numbers]
    curves = [family.grid("test", number, GRID_POINTS) for number in numbers]
    (support_x, support_y), (query_x, query_y) = (
        tuple(tf.stack(values) for values in zip(*pairs, strict=True))
        for pairs in (supports, curves)
    )
    return (support_x, support_y), (query_x, query_y)


def predict(learner: MetaLearner, weights: Weights, episodes: Episodes) -> Predictions:
    """Returns the predictions for the query sets, before and after adaptation."""
    learner.model.set_weights(weights)
    predictions = learner.predict_episodes(episodes)
    return np.asarray(predictions.before[1]), np.asarray(predictions.after[1])


def report(predictions: dict[str, Predictions], unseen: Episodes) -> dict[str, float]:
    """Prints a table of errors, and returns those after adaptation."""
    truth = np.asarray(unseen[1][1])
    print(
        f"\nError (RMSE) on {NUM_UNSEEN_TASKS} unseen tasks   before adaptation   after adaptation"
    )
    errors = {}
    for name, outputs in predictions.items():
        before, errors[name] = (float(np.sqrt(np.mean((y - truth) ** 2))) for y in outputs)
        print(f"{name:<34}{before:>17.3f}{errors[name]:>19.3f}")
    print(
        f"The error of the learned initialization is 1/{errors[RANDOM] / errors[LEARNED]:.0f} of "
        "that of the random one."
    )
    return errors


def draw(
    path: Path,
    starts: dict[str, Weights],
    predictions: dict[str, Predictions],
    unseen: Episodes,
) -> None:
    """Draws adaptation to the first few unseen tasks."""
    some = tf.nest.map_structure(lambda values: values[:NUM_DRAWN_TASKS], unseen)
    # Compiling does not pay off for one batch.
    early = make_learner(network(), FINAL_TIME / 10, jit_compile="off")
    rows = {}
    for name in (LEARNED, RANDOM):
        before, after = (outputs[:NUM_DRAWN_TASKS] for outputs in predictions[name])
        _, during = predict(early, starts[name], some)
        tasks_drawn = zip(*some[0], *some[1], before, during, after, strict=True)
        rows[name] = [AdaptationCurves(*curves) for curves in tasks_drawn]
    draw_adaptation(rows, path, during="a tenth of the way")


def check_export(path: Path, unseen: Episodes, expected: np.ndarray) -> None:
    """Adapts to one task through the export.

    Raises:
        RuntimeError: if the predictions differ from those of the learner.
    """
    (support_x, support_y), (query_x, _) = tf.nest.map_structure(lambda v: v[0], unseen)
    served = tf.saved_model.load(str(path))
    answer = served.signatures["adapt_and_predict"](
        support_x=support_x, support_y=support_y, query_x=query_x
    )
    difference = float(np.max(np.abs(answer["predictions"] - expected[0])))
    if not difference <= AGREEMENT:
        raise RuntimeError(
            f"Expected the export in {path} to predict what the learner does, got predictions "
            f"{difference:.2g} apart; please report this."
        )


if __name__ == "__main__":
    absl.logging.set_verbosity(absl.logging.ERROR)  # hides TensorFlow's routine notes
    execution.compile_quickly()
    main()
