"""The best checkpoint by validation is kept, and a run can stop early; full disks."""

import contextlib
import resource

import keras
import pytest

import amaml_tf as amaml
from amaml_tf import training
from amaml_tf.errors import SaveError
from amaml_tf.training.checkpoint_files import CheckpointFolder
from amaml_tf.training.validation import best_step

FAMILY = amaml.tasks.SinusoidFamily(num_support=3, num_query=3)


@pytest.fixture(scope="module")
def compiled():
    model = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1)])
    learner = amaml.MetaLearner(model, amaml.algorithms.MAML(0.1, 1))
    learner.compile(optimizer="sgd", loss="mse", jit_compile="off")
    return learner


@pytest.fixture
def learner(compiled):
    compiled.optimizer.iterations.assign(0)
    return compiled


def train(learner, workdir, num_meta_steps, losses=None, **options):
    """Trains with validations that give these losses by meta-step."""
    done = []

    def validate():
        done.append(int(learner.optimizer.iterations))
        return {"loss": losses[done[-1]]}

    if losses is not None:
        options |= {"validate": validate, "validate_every": 1}
    options = {"log_every": 2, "checkpoint_every": 1} | options
    training.train(
        learner, FAMILY, workdir, num_meta_steps=num_meta_steps, meta_batch_size=2, **options
    )
    return done


def steps(workdir):
    return CheckpointFolder(workdir).steps()


LOSSES = {1: 3.0, 2: 1.0, 3: 2.0, 4: float("nan"), 5: 1.0, 6: 4.0, 7: 0.5}


def test_the_best_is_kept_beside_the_newest(learner, tmp_path):
    assert train(learner, tmp_path, 6, LOSSES) == [1, 2, 3, 4, 5, 6]
    assert steps(tmp_path) == [2, 4, 5, 6]
    assert best_step(tmp_path, steps(tmp_path)) == 2
    assert train(learner, tmp_path, 7, LOSSES) == [7]
    assert steps(tmp_path) == [5, 6, 7]


def test_it_stops_early_and_stays_so(learner, tmp_path):
    assert train(learner, tmp_path, 7, LOSSES, patience=3) == [1, 2, 3, 4, 5]
    assert train(learner, tmp_path, 7, LOSSES, patience=3) == []
    assert train(learner, tmp_path, 7, LOSSES, patience=4) == [6]
    assert train(learner, tmp_path, 7, LOSSES) == [7]


def test_a_validation_that_was_not_made_is_made_up_for(learner, tmp_path):
    train(learner, tmp_path, 2)
    assert train(learner, tmp_path, 3, LOSSES) == [2, 3]


def test_no_validation(tmp_path):
    with pytest.raises(amaml.UsageError, match=r"validations in .*, got none of a checkpoint that"):
        best_step(tmp_path, [1])


@contextlib.contextmanager
def full_disk(size):
    """No file can grow beyond `size` bytes."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


class FullAfter(keras.callbacks.Callback):
    """The disk is full from one meta-step to another."""

    def __init__(self, first, last):
        super().__init__()
        self.first, self.last = first, last
        self.context = contextlib.ExitStack()

    def on_train_batch_end(self, batch, logs=None):
        step = int(self.model.optimizer.iterations)
        if step == self.first:
            self.context.enter_context(full_disk(100))
        elif step == self.last:
            self.context.close()


def test_a_full_disk_stops_the_run_and_keeps_the_last_checkpoint(learner, tmp_path):
    full = FullAfter(3, 100)
    words = "Expected to save meta-step 3 in .*; the checkpoint of meta-step 2 is untouched"
    with full.context, pytest.raises(SaveError, match=words):
        train(learner, tmp_path, 6, callbacks=[full])
    assert steps(tmp_path) == [1, 2]
    assert train(learner, tmp_path, 6) == []
    assert (tmp_path / training.LOG_FILE).read_text().count("\n") == 4


def test_with_warn_the_run_goes_on_when_there_is_room(learner, tmp_path, capsys):
    full = FullAfter(3, 5)
    with full.context:
        train(learner, tmp_path, 6, callbacks=[full], on_save_failure="warn")
    assert steps(tmp_path)[-2:] == [5, 6]
    assert "meta-step 2 is untouched" in capsys.readouterr().err
    assert (tmp_path / training.LOG_FILE).read_text().count("\n") == 4
    assert training.restore(learner, tmp_path) == 6


def test_no_room_is_found_out_before_the_training(learner, tmp_path, monkeypatch):
    monkeypatch.setattr("shutil.disk_usage", lambda _: type("Usage", (), {"free": 1000}))
    with pytest.raises(SaveError, match=r"room for two checkpoints of 0.0 MB in .*, got 0.0 MB"):
        train(learner, tmp_path, 6)
    assert learner.optimizer.iterations == 0


def test_an_unknown_way_to_go_on(learner, tmp_path):
    with pytest.raises(amaml.UsageError, match="on_save_failure to be one of stop, warn, got 'no"):
        train(learner, tmp_path, 6, on_save_failure="no")
