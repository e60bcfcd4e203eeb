"""The training loop: what it leaves, and that a stopped run goes on as if nothing had been."""

import csv

import keras
import numpy as np
import pytest
import tensorflow as tf

import amaml_tf as amaml
from amaml_tf import training

FAMILY = amaml.tasks.SinusoidFamily(num_support=3, num_query=3)


def new_learner():
    """Has state of every kind: Adam's moments, a dropout seed, stored statistics, learned rates."""
    keras.utils.set_random_seed(0)
    inputs = keras.Input((1,))
    x = keras.layers.Dense(4, "tanh")(inputs)
    x = keras.layers.BatchNormalization()(x)
    x = keras.layers.Dropout(0.5)(x)
    model = keras.Model(inputs, keras.layers.Dense(1)(x))
    flow = amaml.GradientFlow(final_time=0.2, solver=amaml.solvers.GradientDescent(0.1))
    algorithm = amaml.algorithms.AdjointMAML(flow, learned_rates="tensor")
    learner = amaml.MetaLearner(model, algorithm)
    learner.compile(
        optimizer=keras.optimizers.Adam(0.01),
        loss="mse",
        metrics=FAMILY.metrics(),
        jit_compile="off",
    )
    return learner


def variables(learner):
    return [*learner.model.variables, *learner.optimizer.variables, *learner.algorithm_variables]


def values(learner):
    return [keras.ops.convert_to_numpy(variable) for variable in variables(learner)]


class Runs:
    """Runs that each begin with a learner as new: tracing one for each would take minutes."""

    def __init__(self):
        self._learner = new_learner()
        self._learner.optimizer.build(
            [*self._learner.model.trainable_variables, *self._learner.algorithm_variables]
        )
        self._first_values = values(self._learner)

    def new_learner(self):
        for variable, value in zip(variables(self._learner), self._first_values, strict=True):
            variable.assign(value)
        return self._learner

    def train(self, workdir, num_meta_steps, **options):
        """Values of all variables after a run."""
        learner = self.new_learner()
        settings = {"meta_batch_size": 2, "seed": 3, "log_every": 2, "checkpoint_every": 2}
        training.train(
            learner, FAMILY, workdir, num_meta_steps=num_meta_steps, **(settings | options)
        )
        return values(learner)


@pytest.fixture(scope="module")
def runs():
    return Runs()


def logged_steps(workdir):
    with open(workdir / training.LOG_FILE, newline="") as file:
        return [int(row["step"]) for row in csv.DictReader(file)]


def log_without_seconds(workdir):
    with open(workdir / training.LOG_FILE, newline="") as file:
        return [row | {"seconds": ""} for row in csv.DictReader(file)]


class StopAfter(keras.callbacks.Callback):
    def __init__(self, batch, error=KeyboardInterrupt):
        super().__init__()
        self.batch = batch
        self.error = error

    def on_train_batch_end(self, batch, logs=None):
        self.batch -= 1
        if self.batch == 0:
            raise self.error


@pytest.fixture(scope="module")
def whole(runs, tmp_path_factory):
    """Workdir and values of a run of seven meta-steps that nothing stopped."""
    workdir = tmp_path_factory.mktemp("whole")
    return workdir, runs.train(workdir, 7)


def assert_equal(some, others):
    tf.nest.map_structure(np.testing.assert_array_equal, some, others)


def test_a_run_leaves_logs_and_a_checkpoint_of_its_end(whole):
    workdir, expected = whole
    assert logged_steps(workdir) == [2, 4, 6, 7]
    assert list((workdir / training.TENSORBOARD_FOLDER).iterdir())
    other = new_learner()
    assert training.restore(other, workdir) == 7
    assert_equal(values(other), expected)


def test_the_log_has_query_loss_and_metrics_before_and_after_adaptation(whole):
    with open(whole[0] / training.LOG_FILE, newline="") as file:
        row = next(csv.DictReader(file))
    names = {"loss", "loss_before", "rmse", "rmse_before", "gradient_evaluations"}
    assert names < set(row)
    assert float(row["loss"]) != float(row["loss_before"])
    assert float(row["gradient_evaluations"]) == 2


@pytest.mark.parametrize("stops", [[4], [1, 3]], ids=["at an entry of the log", "between two"])
def test_a_run_that_goes_on_equals_one_that_was_not_stopped(runs, whole, tmp_path, stops):
    for num_meta_steps in stops:
        runs.train(tmp_path, num_meta_steps)
    assert_equal(runs.train(tmp_path, 7), whole[1])


def test_other_episodes_give_another_result(runs, whole, tmp_path):
    assert not np.array_equal(runs.train(tmp_path, 7, seed=4)[0], whole[1][0])


def test_an_interruption_saves_and_says_how_to_go_on(runs, whole, tmp_path):
    with pytest.raises(KeyboardInterrupt, match="after meta-step 3 of 7, which is saved; run"):
        runs.train(tmp_path, 7, callbacks=[StopAfter(3)])
    assert_equal(runs.train(tmp_path, 7), whole[1])
    assert logged_steps(tmp_path) == [2, 4, 6, 7]


class StopAtTheEndOfARow(keras.callbacks.Callback):
    def on_epoch_end(self, epoch, logs=None):
        raise KeyboardInterrupt


@pytest.mark.parametrize("stop", [StopAfter(2), StopAtTheEndOfARow()], ids=["before", "at"])
def test_a_callback_that_interrupts_the_end_of_a_row_loses_no_row(runs, whole, tmp_path, stop):
    with pytest.raises(KeyboardInterrupt, match="after meta-step 2 of 7, which is saved"):
        runs.train(tmp_path, 7, callbacks=[stop])
    runs.train(tmp_path, 7)
    assert log_without_seconds(tmp_path) == log_without_seconds(whole[0])


def test_after_a_crash_the_log_forgets_what_is_done_again(runs, whole, tmp_path):
    with pytest.raises(OSError, match="crash"):
        runs.train(tmp_path, 7, checkpoint_every=3, callbacks=[StopAfter(5, OSError("crash"))])
    assert logged_steps(tmp_path) == [2, 4]
    assert_equal(runs.train(tmp_path, 7), whole[1])  # from meta-step 3 on
    assert logged_steps(tmp_path) == [2, 4, 6, 7]


def test_a_finished_run_takes_no_step(runs, whole):
    workdir, expected = whole
    assert_equal(runs.train(workdir, 7), expected)
    assert logged_steps(workdir) == [2, 4, 6, 7]


def test_restoring_without_a_checkpoint(runs, tmp_path):
    with pytest.raises(ValueError, match=r"Expected a checkpoint in .*, got none; train there"):
        training.restore(runs.new_learner(), tmp_path)


def test_a_failing_flow_ends_the_training_with_its_reason(runs, tmp_path):
    x = np.zeros((3, 1), np.float32)
    family = amaml.tasks.from_function(lambda split, rng: ((x, x * np.nan), (x, x)))
    with pytest.raises(amaml.AdaptationError, match="infinite or NaN"):
        training.train(runs.new_learner(), family, tmp_path, num_meta_steps=2, meta_batch_size=2)
    assert not training.has_checkpoint(tmp_path)
