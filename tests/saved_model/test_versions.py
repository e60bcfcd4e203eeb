"""Versions of an export: none is lost, none is half there, and what killed exporters left goes."""

import os
import signal
import subprocess
import sys
import threading

import numpy as np
import pytest
import tensorflow as tf

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


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """A version whose answers were compared when it was written."""
    return save_initialization(learner(), tmp_path_factory.mktemp("exports"), keep_versions=1)


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


def fields(message):
    """The fields of a serialized message, all of which have a length."""

    def varint(place):
        value = shift = 0
        while True:
            value |= (message[place] & 127) << shift
            place, shift = place + 1, shift + 7
            if message[place - 1] < 128:
                return value, place

    place, found = 0, []
    while place < len(message):
        key, place = varint(place)
        assert key & 7 == 2
        length, place = varint(place)
        found.append((key >> 3, message[place : place + length]))
        place += length
    return found


def test_there_is_a_warm_up_request_for_each_signature(exported):
    """The fields are those of tensorflow_serving/apis/prediction_log.proto and predict.proto."""
    served = tf.saved_model.load(exported)
    path = exported / "assets.extra" / "tf_serving_warmup_requests"
    seen = set()
    for record in tf.data.TFRecordDataset(str(path)).as_numpy_iterator():
        ((predict_log, log),) = fields(record)
        ((request_field, request),) = fields(log)
        assert (predict_log, request_field) == (6, 1)
        (_, spec), *inputs = fields(request)
        ((name_field, name),) = fields(spec)
        assert name_field == 3
        tensors = {}
        for number, entry in inputs:
            assert number == 2
            (_, key), (_, value) = fields(entry)
            proto = tf.compat.v1.make_tensor_proto(0).__class__.FromString(value)
            tensors[key.decode()] = tf.constant(tf.make_ndarray(proto))
        answer = served.signatures[name.decode()](**tensors)
        # Adaptation is at rest, so that no step size that is right for the tasks diverges.
        assert np.max(answer.get("support_loss_before", 0)) < 1e-6
        assert all(np.isfinite(v).all() for v in answer.values() if v.dtype.is_floating)
        seen.add(name.decode())
    assert seen == set(served.signatures)
