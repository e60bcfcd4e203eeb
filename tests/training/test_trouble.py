"""Runs that meet bad tasks, diverge, or run out of episodes."""

import csv

import keras
import numpy as np
import pytest
import tensorflow as tf

import amaml_tf as amaml
from amaml_tf import training
from amaml_tf.errors import TrainingError

BATCH = 2


def new_learner(on_failure, optimizer=None):
    keras.utils.set_random_seed(0)
    model = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1)])
    learner = amaml.MetaLearner(model, amaml.algorithms.MAML(0.1, 1))
    learner.compile(
        optimizer=optimizer or keras.optimizers.Adam(0.1),
        loss="mse",
        metrics=["mae"],
        on_failure=on_failure,
        jit_compile="off",
    )
    return learner


@pytest.fixture(scope="module")
def dropping():
    return new_learner("drop")


@pytest.fixture(scope="module")
def raising():
    return new_learner("raise")


def begin(learner):
    """As new, for another run."""
    learner.optimizer.build(learner.trainable_variables)
    for variable in [*learner.trainable_variables, *learner.optimizer.variables]:
        if variable is not learner.optimizer._learning_rate:
            variable.assign(tf.zeros_like(variable.value))


def episode(number, bad=None):
    """One task; its query or support targets are NaN, or its inputs are far too large."""
    x = np.random.default_rng(number).normal(size=(3, 1)).astype("float32")
    nan = np.full_like(x, np.nan)
    return (x, nan if bad == "support" else 2 * x), (
        x * (1e30 if bad == "huge" else 1),
        nan if bad == "query" else 2 * x,
    )


def family(bad=(), kind="query", length=1000):
    """A family whose episodes of the numbers `bad` are bad."""

    def episodes(split, rng):
        for number in range(length if split == "train" else 100):
            yield episode(number, kind if number in bad and split == "train" else None)

    return amaml.tasks.from_function(episodes)


def train(learner, tasks, workdir, num_meta_steps, **options):
    options = {"log_every": 2, "checkpoint_every": 2} | options
    return training.train(
        learner, tasks, workdir, num_meta_steps=num_meta_steps, meta_batch_size=BATCH, **options
    )


def values(learner):
    optimizer = learner.optimizer
    found = [*learner.trainable_variables, *optimizer.variables]
    return [np.array(v) for v in found if v is not optimizer.iterations]


def rows(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize("kind", ["query", "support"])
def test_a_bad_task_raises_and_is_not_saved(raising, tmp_path, kind):
    begin(raising)
    words = {"query": "task 1 of the batch .1 of 2 tasks failed.: its query loss", "support": "NaN"}
    with pytest.raises(amaml.AdaptationError, match=words[kind]):
        train(raising, family({7}, kind), tmp_path, 6)
    assert training.restore(raising, tmp_path) == 2


def test_a_bad_query_set_raises_in_an_evaluation_too(raising):
    batch = tf.nest.map_structure(
        lambda *parts: np.stack(parts), episode(0), episode(1, bad="query")
    )
    with pytest.raises(amaml.AdaptationError, match="its query loss is infinite or NaN"):
        raising.evaluate(tf.data.Dataset.from_tensors(batch), verbose=0)


def test_dropped_tasks_are_named_and_the_others_count(dropping, tmp_path):
    begin(dropping)
    train(dropping, family({2, 6, 7}), tmp_path, 6)
    assert rows(tmp_path / "dropped.csv") == [
        {"step": "2", "episodes": "2", "undone": "0"},
        {"step": "4", "episodes": "6 7", "undone": "1"},
    ]
    logged = rows(tmp_path / training.LOG_FILE)
    assert [row["dropped_tasks"] for row in logged] == ["1.0", "2.0", "0.0"]
    assert [row["undone_steps"] for row in logged] == ["0.0", "1.0", "0.0"]
    assert all(np.isfinite(float(row["loss"])) for row in logged)


def test_a_step_without_a_sound_task_changes_nothing_but_its_number(dropping, tmp_path):
    begin(dropping)
    train(dropping, family({4, 5}), tmp_path, 2)
    before = values(dropping)
    train(dropping, family({4, 5}), tmp_path, 3)
    assert dropping.optimizer.iterations == 3
    tf.nest.map_structure(np.testing.assert_array_equal, values(dropping), before)
    last = rows(tmp_path / training.LOG_FILE)[-1]
    assert last["step"] == "3"
    assert (last["loss"], last["mae"]) == ("nan", "nan")  # not 0, the mean of nothing


@pytest.mark.parametrize("on_failure", ["drop", "raise"])
def test_what_is_not_finite_is_never_applied(tmp_path, on_failure):
    learner = new_learner(on_failure, keras.optimizers.SGD(1e38, momentum=0.9))
    begin(learner)
    before = values(learner)
    x = np.full((BATCH, 1, 1), 1e3, np.float32)
    batches = tf.data.Dataset.from_tensors(((x * 0, x * 0), (x, x)))
    if on_failure == "raise":
        with pytest.raises(amaml.AdaptationError, match="the batch: the meta-update made weig"):
            learner.fit(batches, verbose=0)
        assert learner.optimizer.iterations == 0
    else:
        learner.fit(batches, verbose=0)
        assert learner.optimizer.iterations == 1
    tf.nest.map_structure(np.testing.assert_array_equal, values(learner), before)


def test_a_meta_gradient_that_is_not_finite(raising):
    begin(raising)
    before = values(raising)
    x = np.full((BATCH, 1, 1), 1e25, np.float32)  # its loss is finite, its gradient is not
    support = np.zeros((BATCH, 1, 1), np.float32)
    batch = (support, support), (x, np.full_like(x, 1e15))
    with pytest.raises(amaml.AdaptationError, match="the batch: the meta-gradient is infinite or"):
        raising.fit(tf.data.Dataset.from_tensors(batch), verbose=0)
    tf.nest.map_structure(np.testing.assert_array_equal, values(raising), before)


def test_too_many_dropped_tasks_stop_the_run(dropping, tmp_path):
    begin(dropping)
    bad = set(range(8, 1000))
    words = "at most 50% of the tasks to be dropped, got 60% over 10 meta-steps, at meta-step 10"
    with pytest.raises(TrainingError, match=words):
        train(dropping, family(bad), tmp_path, 100)
    assert len(rows(tmp_path / "dropped.csv")) == 6
    assert train(dropping, family(bad), tmp_path, 12, max_dropped=1.0) == 4
    assert len(rows(tmp_path / "dropped.csv")) == 8


def test_a_run_that_fails_at_a_step_is_gone_round(raising, tmp_path):
    begin(raising)
    bad = family({7})
    for _ in range(2):
        with pytest.raises(amaml.AdaptationError):
            train(raising, bad, tmp_path, 6)
    assert train(raising, bad, tmp_path, 6, skip_episodes=(7,)) == 4


def test_another_episode_of_the_batch_takes_the_place_of_a_skipped_one():
    numbers = tf.data.Dataset.range(8).batch(2)
    chosen = training.skipping(numbers, {4, 7}, batch_size=2, start=0)
    assert [batch.tolist() for batch in chosen.as_numpy_iterator()] == [
        [0, 1],
        [2, 3],
        [5, 5],
        [6, 6],
    ]
    chosen = training.skipping(numbers.skip(2), {4, 7}, batch_size=2, start=2)
    assert [batch.tolist() for batch in chosen.as_numpy_iterator()] == [[5, 5], [6, 6]]
    with pytest.raises(amaml.UsageError, match="got all of meta-step 3 to skip; skip fewer"):
        training.skipping(numbers, {4, 5}, batch_size=2, start=0)


def test_episodes_that_end(dropping, tmp_path):
    begin(dropping)
    tasks = family(length=7)  # three batches, and half of one
    words = "episodes for 6 meta-steps, got too few: 3 meta-steps are done and saved. Give"
    for _ in range(2):
        with pytest.raises(TrainingError, match=words):
            train(dropping, tasks, tmp_path, 6)
        assert training.restore(dropping, tmp_path) == 3
    assert [row["step"] for row in rows(tmp_path / training.LOG_FILE)] == ["2"]


def test_an_empty_data_set(dropping, tmp_path):
    begin(dropping)
    before = values(dropping)
    empty = tf.data.Dataset.from_tensors(episode(0)).take(0)
    with pytest.raises(TrainingError, match="got too few: there are none at all"):
        train(dropping, amaml.tasks.from_dataset(empty), tmp_path, 6)
    assert dropping.optimizer.iterations == 0
    tf.nest.map_structure(np.testing.assert_array_equal, values(dropping), before)
    assert not training.has_checkpoint(tmp_path)
