"""The logs of a run agree with the checkpoint that it goes on from."""

import os

import pytest
import tensorflow as tf

from amaml_tf.training.checkpoints import Checkpoints
from amaml_tf.training.csv_rows import CsvRows
from amaml_tf.training.saving import Saving
from amaml_tf.training.tensorboard import TensorBoard


def went_on(path, text, step=4):
    """The file after a run goes on from a meta-step."""
    path.write_bytes(text.encode())
    CsvRows(path, step).append({"step": 6, "loss": 0.5})
    return path.read_text()


@pytest.mark.parametrize(
    "text",
    [
        "step,loss\n2,3.0\n4,2.0\n",
        "step,loss\n2,3.0\n4,2.0\n6,1.0\n8,0.9\n",
        "step,loss\n2,3.0\n4,2.0\n6,1.",
        "step,loss\n2,3.0\n4,2.0\n6",
        '\ufeffstep,loss\r\n2,3.0\r\n"4",2.0\r\n6,1.0\r\n',
    ],
    ids=["the same step", "later steps", "half a row", "half a number", "of a spreadsheet"],
)
def test_rows_of_meta_steps_that_are_done_again_are_removed(tmp_path, text):
    assert went_on(tmp_path / "log.csv", text) == "step,loss\n2,3.0\n4,2.0\n6,0.5\n"


@pytest.mark.parametrize("text", ["", "step,loss\n", "ste", "step,loss\n6,1.0\n"])
def test_a_log_without_a_row_begins_anew(tmp_path, text):
    assert went_on(tmp_path / "log.csv", text) == "step,loss\n6,0.5\n"


@pytest.mark.parametrize(
    "text",
    [
        "step;loss\n2;3.0\n",
        "step,loss\nFeb 3,3.0\n",
        "step,loss\n2\n",
        "step,loss\n2,1,2\n",
        "\0\n",
        f"step,loss\n2,{'3' * 200_000}\n",
        f"step,loss\n{'2' * 5_000},3\n",
    ],
    ids=["semicolons", "a date", "too short", "too long", "no text", "a long cell", "a large step"],
)
def test_what_is_no_log_any_more_is_set_aside(tmp_path, capsys, text):
    assert went_on(tmp_path / "log.csv", text) == "step,loss\n6,0.5\n"
    assert (tmp_path / "log-damaged-1.csv").read_text() == text
    assert "another program has changed; it is now" in capsys.readouterr().err


def test_a_new_column(tmp_path):
    rows = CsvRows(tmp_path / "log.csv", 0)
    rows.append({"step": 2, "loss": 0.5})
    rows.append({"step": 4, "loss": 0.4, "dropped_tasks": 1})
    rows.append({"step": 6, "loss": 0.3})
    assert (tmp_path / "log.csv").read_text() == (
        "step,loss,dropped_tasks\n2,0.5,\n4,0.4,1\n6,0.3,\n"
    )


def test_a_row_that_did_not_fit_is_written_with_the_next(tmp_path, monkeypatch):
    path = tmp_path / "log.csv"
    rows = CsvRows(path, 0)
    rows.append({"step": 2, "loss": 0.5})

    def full(_):
        with path.open("a") as file:
            file.write("4,0")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        rows.append({"step": 4, "loss": 0.4})
    monkeypatch.undo()
    rows.append({"step": 6, "loss": 0.3})
    assert path.read_text() == "step,loss\n2,0.5\n4,0.4\n6,0.3\n"


class AtStep(Checkpoints):
    """Knows only the number of its meta-step."""

    step = 0

    def __init__(self, step):
        self.step = step


def steps_of_events(folder):
    steps = []
    for path in sorted(folder.iterdir()):
        for record in tf.data.TFRecordDataset(str(path)).as_numpy_iterator():
            event = tf.compat.v1.Event.FromString(record)
            steps += [event.step] * len(event.summary.value)
    return sorted(steps)


def write_events(folder, start, steps):
    at = AtStep(start)
    board = TensorBoard(at, folder, Saving("stop"))
    for at.step in steps:
        board.on_epoch_end(0, {"loss": 1.0})


def test_tensorboard_has_every_meta_step_once(tmp_path):
    write_events(tmp_path, 0, [2, 4, 6])
    (path,) = tmp_path.iterdir()
    path.write_bytes(path.read_bytes()[:-3])  # a kill in a record
    (tmp_path / ".unfinished-0123abcd").write_text("half")
    write_events(tmp_path, 2, [4, 6, 8])
    assert steps_of_events(tmp_path) == [2, 4, 6, 8]
