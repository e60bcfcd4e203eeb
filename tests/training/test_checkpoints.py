"""Checkpoints that can be trusted: damage, loss and kills, and what is made of them."""

import errno
import os
import pathlib

import keras
import numpy as np
import pytest
import tensorflow as tf

import amaml_tf as amaml
from amaml_tf import files, training
from amaml_tf.errors import SaveError, TrainingError
from amaml_tf.training import checkpoint_files
from amaml_tf.training.checkpoints import Checkpoints


def new_learner(units=2):
    model = keras.Sequential([keras.Input((1,)), keras.layers.Dense(units), keras.layers.Dense(1)])
    learner = amaml.MetaLearner(model, amaml.algorithms.MAML(0.1, 1))
    learner.compile(optimizer=keras.optimizers.Adam(), loss="mse", jit_compile="off")
    return learner


class Run:
    """A run without training: each step is a number in every weight."""

    def __init__(self, workdir):
        self.learner = new_learner()
        self.workdir = workdir
        self.folder = workdir / training.CHECKPOINT_FOLDER
        self.checkpoints = Checkpoints(self.learner, workdir)

    def save(self, step):
        self.learner.optimizer.iterations.assign(step)
        for variable in self.learner.trainable_variables:
            variable.assign(np.full(variable.shape, step, np.float32))
        self.checkpoints.save()

    def resumed(self):
        """The meta-step, and the number in the weights, after the start of another process."""
        learner = new_learner()
        step = Checkpoints(learner, self.workdir).resume()
        return step, float(learner.trainable_variables[0].numpy().flat[0])

    def file(self, step, part="index"):
        (path,) = self.folder.glob(f"meta_step-{step}.{part}*")
        return path


@pytest.fixture
def run(tmp_path):
    """A run with the checkpoints of meta-steps 1, 2 and 3."""
    run = Run(tmp_path)
    for step in (1, 2, 3):
        run.save(step)
    return run


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def cut(path):
    path.write_bytes(path.read_bytes()[:-1])


def flip(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def folder(path):
    path.unlink()
    path.mkdir()


def pipe(path):
    path.unlink()
    os.mkfifo(path)


DAMAGES = {
    "cut": cut,
    "flipped": flip,
    "empty": lambda path: path.write_bytes(b""),
    "zeros": lambda path: path.write_bytes(bytes(path.stat().st_size)),
    "gone": lambda path: path.unlink(),
    "folder": folder,
    "pipe": pipe,
}


@pytest.mark.parametrize("part", ["index", "data"])
@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_the_newest_whole_one_is_used_and_the_loss_is_told(run, capsys, damage, part):
    damage(run.file(3, part))
    assert run.resumed() == (2, 2.0)
    told = capsys.readouterr().err
    assert f"The checkpoint of meta-step 3 in {run.folder} is damaged: its " in told
    assert "newest whole one is of meta-step 2: 1 meta-steps are lost" in told
    assert not [*run.folder.glob("meta_step-3.*")]
    assert [*(run.folder / "damaged").glob("meta_step-3.*")]
    assert run.resumed() == (2, 2.0)
    assert not capsys.readouterr().err  # told once


def test_two_damaged_ones(run, capsys):
    cut(run.file(3, "data"))
    cut(run.file(2))
    assert run.resumed() == (1, 1.0)
    assert "1: 2 meta-steps are lost" in capsys.readouterr().err


def test_a_run_with_only_damaged_checkpoints_is_refused_again_and_again(run):
    for step in (1, 2, 3):
        cut(run.file(step))
    before = names(run.folder)
    for _ in range(2):
        with pytest.raises(amaml.UsageError, match=r"got only damaged ones .meta-step 3: its leng"):
            run.resumed()
    assert names(run.folder) == before


def test_when_only_what_was_set_aside_is_left(run):
    cut(run.file(3))
    run.resumed()
    for step in (1, 2):
        run.file(step).unlink()
        run.file(step, "data").unlink()
    with pytest.raises(amaml.UsageError, match=r"got only damaged ones .set aside earlier"):
        run.resumed()


def test_a_checkpoint_with_weights_that_are_not_finite_is_damaged(run, capsys, monkeypatch):
    monkeypatch.setattr(Checkpoints, "_require_finite_variables", lambda _: None)
    run.save(np.nan_to_num(4))
    run.learner.trainable_variables[1].assign([np.nan, 1.0])
    run.learner.optimizer.iterations.assign(5)
    run.checkpoints.save()
    assert run.resumed() == (4, 4.0)
    assert "it holds weights that are infinite or NaN" in capsys.readouterr().err


def test_without_its_list_of_checkpoints_a_run_goes_on(run):
    (run.folder / "checkpoint").unlink()
    assert run.resumed() == (3, 3.0)


@pytest.mark.parametrize("place", ["a file", "a lost disk", "a loop"])
def test_a_folder_that_is_not_there_is_no_new_run(tmp_path, place):
    folder = tmp_path / training.CHECKPOINT_FOLDER
    if place == "a file":
        folder.touch()
    else:
        folder.symlink_to(folder if place == "a loop" else tmp_path / "disk" / "checkpoints")
    with pytest.raises(amaml.UsageError, match="got a file or a link to what is not there; put"):
        training.has_checkpoint(tmp_path)


def test_copies_of_files_are_no_checkpoints(run):
    for name in ("meta_step-3 (copy).index", "meta_step-copy.index", "meta_step-04.index"):
        (run.folder / name).write_bytes(run.file(3).read_bytes())
    assert run.resumed() == (3, 3.0)


def test_tensorflow_finds_the_newest(run):
    assert tf.train.latest_checkpoint(str(run.folder)) == str(run.folder / "meta_step-3")
    state = tf.train.get_checkpoint_state(str(run.folder))
    assert [path[-1] for path in state.all_model_checkpoint_paths] == ["1", "2", "3"]


def test_only_the_newest_are_kept_and_those_that_are_to_be(run):
    run.checkpoints.kept = {1}
    for step in (4, 5):
        run.save(step)
    assert run.checkpoints.folder.steps() == [1, 3, 4, 5]


def test_what_is_saved_is_not_saved_again(run):
    def inode():
        return run.file(3).stat().st_ino

    before = inode()
    run.checkpoints.save()
    assert inode() == before
    assert run.checkpoints.restore() == 3
    run.checkpoints.save()
    assert inode() == before


def test_a_checkpoint_is_on_the_disk_before_an_older_one_goes(run, monkeypatch):
    events = []

    def flushed(path):
        events.append(path.name)
        files.flush_file(path)

    def removed(folder, step):
        events.append(f"removed {step}")

    monkeypatch.setattr("amaml_tf.training.checkpoint_files.flush_file", flushed)
    monkeypatch.setattr(checkpoint_files.CheckpointFolder, "remove", removed)
    run.save(4)
    assert events == ["meta_step-4.data-00000-of-00001", "meta_step-4.index", "removed 1"]


def test_a_checkpoint_whose_index_cannot_be_moved_leaves_nothing(tmp_path, monkeypatch):
    run, replace = Run(tmp_path), pathlib.Path.replace

    def full(path, target):
        if path.suffix == ".index":
            raise OSError(errno.ENOSPC, "No space left on device")
        return replace(path, target)

    monkeypatch.setattr(pathlib.Path, "replace", full)
    with pytest.raises(SaveError):
        run.save(1)
    assert not [path for path in run.folder.rglob("*") if path.is_file()]
    monkeypatch.undo()
    run.save(1)
    assert run.resumed() == (1, 1.0)


def test_what_kills_leave_is_removed(run):
    expected = names(run.folder)
    (run.folder / "meta_step-4_temp").mkdir()
    (run.folder / "meta_step-4_temp" / "part-00000").write_text("half")
    (run.folder / ".unfinished").mkdir()
    run.file(3).rename(run.folder / ".unfinished" / "meta_step-4.index")
    run.file(3, "data").rename(run.folder / "meta_step-4.data-00000-of-00001")
    (run.folder / "checkpoint.tmpabc").write_text("half")
    (run.folder / ".checkpoint.0123abcd").write_text("half")
    (run.folder / "meta_step-0.data-00000-of-00001").write_text("its index was removed")
    assert run.resumed() == (2, 2.0)
    Run.save(Run(run.workdir), 3)
    assert names(run.folder) == expected


def test_a_checkpoint_of_another_learner_is_refused_and_nothing_is_changed(run):
    other = new_learner(units=3)
    before = [variable.numpy() for variable in other.variables]
    sentence = (
        r"of this learner, got \d+ that differ \(first model/0: \(1, 2\) there, \(1, 3\) here"
    )
    with pytest.raises(amaml.UsageError, match=sentence):
        training.restore(other, run.workdir)
    tf.nest.map_structure(
        np.testing.assert_array_equal, before, [variable.numpy() for variable in other.variables]
    )
    assert names(run.folder)[-1] == "meta_step-3.index"


def test_restoring_one_by_its_number(run):
    learner = new_learner()
    assert training.restore(learner, run.workdir, 2) == 2
    assert learner.trainable_variables[0].numpy().flat[0] == 2
    with pytest.raises(amaml.UsageError, match=r"of meta-step 7 in .*, got those of 1, 2, 3; pass"):
        training.restore(learner, run.workdir, 7)
    cut(run.file(1))
    with pytest.raises(
        amaml.UsageError, match=r"whole checkpoint of meta-step 1 .* damaged one: its"
    ):
        training.restore(learner, run.workdir, 1)


def test_restoring_changes_no_file(run):
    cut(run.file(3))
    before = names(run.folder)
    assert training.restore(new_learner(), run.workdir) == 2
    assert names(run.folder) == before


def test_what_cannot_be_written_leaves_the_last_one(run, monkeypatch):
    def full(_):
        raise OSError(28, "No space left on device")

    before = names(run.folder)
    monkeypatch.setattr("amaml_tf.training.checkpoint_files.flush_file", full)
    words = "save meta-step 4 in .*: No space left on device; the checkpoint of meta-step 3 is unto"
    with pytest.raises(SaveError, match=words):
        run.save(4)
    assert names(run.folder) == before
    monkeypatch.undo()
    run.save(4)
    assert run.resumed() == (4, 4.0)


def test_what_does_not_read_back_is_no_checkpoint(run, monkeypatch):
    def damaging(*_):
        raise checkpoint_files.DamagedError("its length or a checksum is wrong")

    before = names(run.folder)
    monkeypatch.setattr(checkpoint_files.CheckpointFolder, "_read", damaging)
    with pytest.raises(SaveError, match="got: its length or a checksum is wrong; the checkpoint"):
        run.save(4)
    assert names(run.folder) == before
    Checkpoints(run.learner, run.workdir, verify=False).save()
    assert run.checkpoints.folder.steps() == [2, 3, 4]


def test_weights_that_are_not_finite_are_not_saved(run):
    run.learner.trainable_variables[1].assign([np.inf, 1.0])
    run.learner.optimizer.iterations.assign(4)
    with pytest.raises(
        TrainingError, match=r"finite weights after meta-step 4, got .* in 1 variab"
    ):
        run.checkpoints.save()
    assert run.resumed() == (3, 3.0)
