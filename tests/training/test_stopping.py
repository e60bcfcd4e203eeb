"""Signals: what is at work ends as documented, saved, and says how to go on."""

import contextlib
import ctypes
import functools
import signal
import subprocess
import sys

import keras
import pytest

import amaml_tf as amaml
from amaml_tf import training
from amaml_tf.training import stopping

FAMILY = amaml.tasks.SinusoidFamily(num_support=3, num_query=3)


@pytest.fixture(autouse=True)
def no_signal_is_ignored():
    """As in a terminal: what runs in the background may ignore signals, and so do its children."""
    before = {
        signal.SIGINT: signal.signal(signal.SIGINT, signal.default_int_handler),
        signal.SIGTERM: signal.signal(signal.SIGTERM, signal.SIG_DFL),
        signal.SIGHUP: signal.signal(signal.SIGHUP, signal.SIG_DFL),
    }
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.fixture(scope="module")
def learner():
    model = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1)])
    learner = amaml.MetaLearner(model, amaml.algorithms.MAML(0.1, 1))
    learner.compile(optimizer="sgd", loss="mse", jit_compile="off")
    return learner


class Signal(keras.callbacks.Callback):
    """Sends signals to this process before or after a meta-step."""

    def __init__(self, number, *, before=None, after=None):
        super().__init__()
        self.number, self.before, self.after = number, before, after

    def on_train_batch_begin(self, batch, logs=None):
        if int(self.model.optimizer.iterations) + 1 == self.before:
            signal.raise_signal(self.number)

    def on_train_batch_end(self, batch, logs=None):
        if int(self.model.optimizer.iterations) == self.after:
            signal.raise_signal(self.number)


def train(learner, workdir, *callbacks, num_meta_steps=5, log_every=100):
    return training.train(
        learner,
        FAMILY,
        workdir,
        num_meta_steps=num_meta_steps,
        meta_batch_size=2,
        log_every=log_every,
        callbacks=callbacks,
    )


@pytest.mark.parametrize(
    ("number", "name", "status"),
    [
        (signal.SIGINT, "SIGINT", 130),
        (signal.SIGTERM, "SIGTERM", 143),
        (signal.SIGHUP, "SIGHUP", 129),
    ],
)
def test_the_meta_step_is_finished_and_saved(learner, tmp_path, number, name, status):
    learner.optimizer.iterations.assign(0)
    handler = signal.getsignal(number)
    words = f"^Stopped by {name} after meta-step 2 of 5, which is saved; run the same command again"
    with pytest.raises(stopping.Stopped, match=words) as stopped:
        train(learner, tmp_path, Signal(number, before=2))
    assert stopped.value.status == status
    assert signal.getsignal(number) is handler
    assert not (tmp_path / ".lock").exists()
    assert train(learner, tmp_path) == 3


def test_a_signal_before_the_first_meta_step(learner, tmp_path):
    learner.optimizer.iterations.assign(0)
    words = "^Stopped by SIGINT before the first meta-step, with nothing to save; run"
    with pytest.raises(stopping.Stopped, match=words):
        train(learner, tmp_path, Signal(signal.SIGINT, before=1))
    assert not training.has_checkpoint(tmp_path)


def test_a_signal_at_the_last_meta_step(learner, tmp_path):
    learner.optimizer.iterations.assign(0)
    with pytest.raises(stopping.Stopped, match="by SIGTERM after meta-step 5 of 5, which is saved"):
        train(learner, tmp_path, Signal(signal.SIGTERM, after=5))
    assert train(learner, tmp_path) == 0


def test_a_signal_at_the_end_of_a_row_loses_no_row(learner, tmp_path):
    learner.optimizer.iterations.assign(0)
    with pytest.raises(stopping.Stopped, match="after meta-step 2 of 5"):
        train(learner, tmp_path, Signal(signal.SIGTERM, after=2), log_every=2)
    train(learner, tmp_path, log_every=2)
    rows = (tmp_path / training.LOG_FILE).read_text().splitlines()[1:]
    assert [row.split(",")[0] for row in rows] == ["2", "4", "5"]


def test_a_signal_before_the_first_row_is_written_loses_no_row(learner, tmp_path):
    learner.optimizer.iterations.assign(0)
    with pytest.raises(stopping.Stopped, match="before the first meta-step, with nothing to save"):
        train(learner, tmp_path, Signal(signal.SIGTERM, after=1), log_every=1)
    learner.optimizer.iterations.assign(0)  # as in a new process
    assert train(learner, tmp_path, num_meta_steps=2, log_every=1) == 2
    rows = (tmp_path / training.LOG_FILE).read_text().splitlines()[1:]
    assert [row.split(",")[0] for row in rows] == ["1", "2"]


def test_a_stop_that_comes_out_as_another_error_is_a_stop():
    with pytest.raises(stopping.Stopped) as stopped, stopping.caught():  # noqa: PT012
        try:
            signal.raise_signal(signal.SIGTERM)
        except stopping.Stopped:
            raise AttributeError("'list' object has no attribute") from None
    assert stopped.value.status == 143


def test_a_stop_that_comes_out_as_a_mistake_of_the_users_is_a_stop():
    """As when C++ code takes a word for a list of letters, because `Stopped` was lost in it."""
    with pytest.raises(stopping.Stopped), stopping.caught():  # noqa: PT012
        with contextlib.suppress(stopping.Stopped):
            signal.raise_signal(signal.SIGTERM)
        raise amaml.UsageError("Expected kind to be one of two, got 'r'.")


def test_a_stop_that_is_lost_is_raised_in_the_end():
    with (
        pytest.raises(stopping.Stopped) as stopped,
        stopping.caught(),
        contextlib.suppress(stopping.Stopped),
    ):
        signal.raise_signal(signal.SIGHUP)
    assert stopped.value.status == 129


def test_what_cpp_code_prints_of_a_stop_is_not_shown(monkeypatch):
    shown: list[object] = []
    monkeypatch.setattr(sys, "unraisablehook", shown.append)
    monkeypatch.setattr(sys, "excepthook", lambda *error: shown.append(error))
    callback = ctypes.CFUNCTYPE(None)
    raising = callback(functools.partial(signal.raise_signal, signal.SIGTERM))
    failing = callback(lambda: 1 / 0)
    with pytest.raises(stopping.Stopped), stopping.caught():  # noqa: PT012
        failing()
        assert len(shown) == 1, "what is no stop is shown"
        raising()
        failing()  # what is computed after a lost stop can be wrong
        sys.excepthook(stopping.Stopped, stopping.Stopped(), None)
    assert len(shown) == 1
    failing()
    assert len(shown) == 2


class LostSignal(keras.callbacks.Callback):
    """A signal whose exception is lost, as in C++ code that calls Python."""

    def on_train_batch_begin(self, batch, logs=None):
        if not batch:
            with contextlib.suppress(stopping.Stopped):
                signal.raise_signal(signal.SIGTERM)


def test_nothing_is_written_after_a_stop_that_was_lost(learner, tmp_path):
    learner.optimizer.iterations.assign(0)
    with pytest.raises(stopping.Stopped, match="before the first meta-step, with nothing to save"):
        train(learner, tmp_path, LostSignal(), log_every=1)
    assert not training.has_checkpoint(tmp_path)
    assert not (tmp_path / training.LOG_FILE).exists()


def test_a_mistake_that_is_told_is_told_in_spite_of_a_signal():
    with pytest.raises(amaml.UsageError, match="Expected"), stopping.caught():  # noqa: PT012
        stopping.hold()
        signal.raise_signal(signal.SIGTERM)
        raise amaml.UsageError("Expected something else.")


def test_when_the_stop_cannot_be_saved(learner, tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    learner.optimizer.iterations.assign(0)
    monkeypatch.setattr("amaml_tf.training.checkpoint_files.flush_file", full)
    with pytest.raises(stopping.Stopped, match=r"which is not saved \(.*No space left.*; no check"):
        train(learner, tmp_path, Signal(signal.SIGTERM, after=2))


def test_elsewhere_a_signal_stops_at_once():
    with pytest.raises(stopping.Stopped, match=r"^$"), stopping.caught():
        signal.raise_signal(signal.SIGTERM)


BUSY = """
import hashlib, signal, sys
from amaml_tf.training import stopping
with stopping.caught("busy", float(sys.argv[1])):
    stopping.hold()
    print("ready", flush=True)
    hashlib.pbkdf2_hmac("sha256", b"word", b"salt", 10**9)  # no Python code runs in it
"""


def busy(seconds):
    """A process that is in one long call, which no handler of Python interrupts."""
    process = subprocess.Popen(
        [sys.executable, "-c", BUSY, str(seconds)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    return process


def test_a_second_signal_ends_it_at_once():
    process = busy(60)
    process.send_signal(signal.SIGTERM)
    line = next(line for line in process.stderr if line.startswith("busy"))
    assert line.startswith("busy: SIGTERM: ends in at most 60 s. A second one ends it now.")
    process.send_signal(signal.SIGTERM)
    assert process.wait(10) == 143
    assert "busy: Stopped by SIGTERM without saving; run the same" in process.stderr.read()


def test_it_ends_within_the_stated_time():
    process = busy(0.5)
    process.send_signal(signal.SIGHUP)
    assert process.wait(10) == 129
    assert "busy: Stopped by SIGHUP without saving; run the same" in process.stderr.read()
