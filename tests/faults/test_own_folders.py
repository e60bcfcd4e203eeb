"""Temporary folders of processes, which are swept if a process was killed."""

import os
import signal
import tempfile

from amaml_tf.files import own_folder


def test_what_a_killed_process_left_is_swept_and_a_folder_at_work_is_not(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    at_work = own_folder("amaml-worker-")
    (tmp_path / "amaml-worker-link").symlink_to(at_work)
    child = os.fork()
    if child == 0:
        (own_folder("amaml-worker-") / "file").touch()
        os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(child, 0)
    (left,) = (path for path in tmp_path.iterdir() if (path / "file").exists())
    other = own_folder("amaml-worker-")
    assert not left.exists()
    assert at_work.is_dir()
    assert other.is_dir()
    assert other != at_work
