"""The lock of a run's folder: it says who holds it, and no crash leaves it behind."""

import multiprocessing
import os
import re
import signal
import socket
import threading

import pytest

import amaml_tf as amaml
from amaml_tf.training.lock import LOCK_FILE, locked


def hold(folder, ready):
    with locked(folder):
        ready.set()
        signal.pause()


@pytest.fixture
def holder(tmp_path):
    """Another process, which holds the lock of the folder."""
    context = multiprocessing.get_context("fork")
    ready = context.Event()
    process = context.Process(target=hold, args=(tmp_path, ready), daemon=True)
    process.start()
    assert ready.wait(30)
    yield process
    process.kill()
    process.join()


def test_a_second_process_is_refused_with_who_holds_it(tmp_path, holder):
    words = (
        rf"no other run at work in {re.escape(str(tmp_path))}, got process {holder.pid} on "
        rf"{re.escape(socket.gethostname())}, since 20\d\d-\d\d-\d\d .* UTC; wait for it"
    )
    with pytest.raises(amaml.UsageError, match=words), locked(tmp_path):
        pass


def test_a_killed_holder_does_not_hold_it(tmp_path, holder):
    holder.kill()
    holder.join()
    assert (tmp_path / LOCK_FILE).exists()
    with locked(tmp_path):
        assert f'"process": {os.getpid()}' in (tmp_path / LOCK_FILE).read_text()
    assert not list(tmp_path.iterdir())


def test_the_same_thread_may_take_it_again_but_no_other(tmp_path):
    refused = []

    def another():
        try:
            with locked(tmp_path):
                pass
        except amaml.UsageError as error:
            refused.append(str(error))

    with locked(tmp_path), locked(tmp_path):
        thread = threading.Thread(target=another)
        thread.start()
        thread.join()
    assert "got another thread of this process" in refused[0]


def test_a_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_text("")
    words = "workdir to be a folder that can be written to"
    with pytest.raises(amaml.UsageError, match=words), locked(tmp_path / "file"):
        pass
