"""A stream of tasks with some that are NaN and some that explode trains as the clean one does."""

import csv

import keras
import numpy as np

import amaml_tf as amaml
from amaml_tf import training
from amaml_tf.evaluation import evaluate

STEPS, BATCH = 150, 4
COUNT = STEPS * BATCH
NAN = set(range(7, COUNT, 100))
EXPLODING = set(range(57, COUNT, 100))


def family(nan=frozenset(), exploding=frozenset()):
    """Lines whose slopes lie about 3; those of some episodes are NaN, or too steep to adapt to."""

    def episodes(split, rng):
        number = 0
        while True:
            x = rng.uniform(-1, 1, size=(10, 1))
            y = rng.normal(3, 0.3) * x + 0.01 * rng.normal(size=x.shape)
            bad = number if split == "train" else -1
            if bad in nan:
                y[2] = np.nan
            if bad in exploding:
                x = 1e4 * x  # each inner step is 1e7 times too long
            yield (x[:5], y[:5]), (x[5:], y[5:])
            number += 1

    return amaml.tasks.from_function(episodes)


def learner():
    keras.utils.set_random_seed(0)
    model = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1)])
    made = amaml.MetaLearner(model, amaml.algorithms.MAML(0.1, 6))
    made.compile(keras.optimizers.Adam(0.1), loss="mse", on_failure="drop", jit_compile="off")
    return made


def trained(tasks, workdir):
    made = learner()
    training.train(
        made, tasks, workdir, num_meta_steps=STEPS, meta_batch_size=BATCH, log_every=STEPS
    )
    return evaluate(made, family().episodes("test", batch_size=50, num_batches=4), 200)


def test_it_trains_to_within_the_interval_of_the_clean_one_and_names_each(tmp_path):
    clean = trained(family(), tmp_path / "clean")
    poisoned = trained(family(NAN, EXPLODING), tmp_path / "poisoned")
    assert clean.after["loss"].mean < clean.before["loss"].mean < 0.1  # it has learned
    for when in ("before", "after"):
        expected, found = getattr(clean, when)["loss"], getattr(poisoned, when)["loss"]
        assert abs(found.mean - expected.mean) < expected.half_width
    with (tmp_path / "poisoned" / training.DROPPED_FILE).open(newline="") as file:
        named = {int(n) for row in csv.DictReader(file) for n in row["episodes"].split()}
    assert named == NAN | EXPLODING
    assert not (tmp_path / "clean" / training.DROPPED_FILE).exists()
