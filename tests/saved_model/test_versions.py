"""Versions of an export: none is lost, none is half there, and what killed exporters left goes."""

import os
import signal
import subprocess
import sys
import threading

import pytest

import amaml_tf as amaml
from amaml_tf.errors import ExportError
from amaml_tf.saved_model import load_initialization, save_initialization, versions, warmup, writing


def learner():
    model = amaml.models.multilayer_perceptron((1,), 1, (2,), seed=0)
    made = amaml.MetaLearner(model, amaml.algorithms.MAML(0.1, 2))
    made.compile(loss="mse", jit_compile="off")
    return made


def numbers(folder):
    return sorted(int(path.name) for path in folder.iterdir())


def publish(root, wait=None):
    """Writes a version that holds one file, as an exporter does."""
    with versions.unfinished(root) as folder:
        if wait is not None:
            wait()
        (folder / versions.SAVED_MODEL).write_text("whole")
        return versions.publish(folder, root, None)


def test_several_exporters_take_the_next_numbers(tmp_path):
    """E7: each of them wrote the same number, and one export was lost."""
    barrier = threading.Barrier(8)
    threads = [threading.Thread(target=publish, args=(tmp_path, barrier.wait)) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert numbers(tmp_path) == list(range(1, 9))


def test_a_number_taken_meanwhile_is_refused(tmp_path):
    with versions.unfinished(tmp_path) as folder:
        publish(tmp_path)
        with pytest.raises(ValueError, match="got 1, which is in"):
            versions.publish(folder, tmp_path, 1)
    assert numbers(tmp_path) == [1]


KILLED = """
import os, pathlib, signal, sys
from amaml_tf.saved_model import versions
with versions.unfinished(pathlib.Path(sys.argv[1])) as folder:
    (folder / "half").write_text("")
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_the_next_exporter_removes_what_a_killed_one_left(tmp_path):
    """E7: its folder stayed, and refused an exporter with its process number for ever."""
    killed = subprocess.run([sys.executable, "-c", KILLED, str(tmp_path)], check=False)
    assert killed.returncode == -signal.SIGKILL
    (tmp_path / f".1.unfinished-{os.getpid()}").mkdir()  # of an earlier version of this library
    assert len(list(tmp_path.iterdir())) == 2
    with versions.unfinished(tmp_path) as folder:  # one that is alive is left alone
        publish(tmp_path)
        assert set(tmp_path.iterdir()) == {folder, tmp_path / "1"}
    assert numbers(tmp_path) == [1]


def test_keeps_the_newest_versions(tmp_path):
    for _ in range(4):
        written = publish(tmp_path)
    versions.keep_newest(tmp_path, 2, written)
    assert numbers(tmp_path) == [3, 4]
    versions.keep_newest(tmp_path, 1, tmp_path / "3")
    assert numbers(tmp_path) == [3, 4]  # the one just written stays


def test_folders_have_the_permissions_of_the_process(tmp_path):
    before = os.umask(0o027)
    try:
        assert publish(tmp_path).stat().st_mode & 0o777 == 0o750
    finally:
        os.umask(before)


@pytest.mark.parametrize("place", ["gs://bucket/model", "s3://bucket/model", "hdfs:/host/model"])
def test_remote_file_systems_are_refused(tmp_path, monkeypatch, place):
    """E8: a local folder `gs:` was made."""
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=f"Expected a folder of this machine.*{place}"):
        save_initialization(learner(), place)
    with pytest.raises(ValueError, match="Expected a folder of this machine"):
        load_initialization(place)
    assert list(tmp_path.iterdir()) == []


def test_home_is_known(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert versions.local_folder("~/model") == tmp_path / "model"


# -- what is written ------------------------------------------------------------------------------


def test_an_export_that_answers_otherwise_gets_no_number(tmp_path, monkeypatch):
    write_warmup = warmup.write_warmup

    def spoil(folder, requests):
        write_warmup(folder, requests)
        path = next((folder / "variables").glob("variables.data*"))
        path.write_bytes(b"\0" * path.stat().st_size)

    monkeypatch.setattr(writing, "write_warmup", spoil)
    with pytest.raises(ExportError, match="nothing was written"):
        save_initialization(learner(), tmp_path)
    assert list(tmp_path.iterdir()) == []
