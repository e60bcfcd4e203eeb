"""The curves of a run for TensorBoard, over meta-steps."""

from __future__ import annotations

import contextlib
import pathlib
import secrets
from collections.abc import Mapping

import keras
import tensorflow as tf

from amaml_tf.training.checkpoints import Checkpoints
from amaml_tf.training.saving import Saving

TENSORBOARD_FOLDER = "tensorboard"
_EVENTS = "events.out.tfevents."


class TensorBoard(keras.callbacks.Callback):
    """Writes the logs for TensorBoard, over meta-steps (Keras's own writes them over epochs).

    What a stopped run wrote after the checkpoint it goes on from is removed.
    """

    def __init__(self, checkpoints: Checkpoints, folder: pathlib.Path, saving: Saving) -> None:
        super().__init__()
        self._checkpoints = checkpoints
        self._folder, self._saving = folder, saving
        self._writer: tf.summary.SummaryWriter | None = None
        if folder.is_dir():
            for leftover in folder.glob(".unfinished-*"):
                leftover.unlink(missing_ok=True)
            for path in sorted(folder.glob(f"{_EVENTS}*")):
                _forget_events_after(checkpoints.step, path)

    def on_epoch_end(self, epoch: int, logs: Mapping[str, float] | None = None) -> None:
        with self._saving.of(self._folder):
            self._write(logs or {})

    def _write(self, logs: Mapping[str, float]) -> None:
        if self._writer is None:  # not earlier: the first meta-step should not wait for it
            self._writer = tf.summary.create_file_writer(str(self._folder))
        with self._writer.as_default(step=self._checkpoints.step):
            for name, value in logs.items():
                tf.summary.scalar(name, value)
        self._writer.flush()


def _forget_events_after(step: int, path: pathlib.Path) -> None:
    """Removes the events of later meta-steps, and a record that a kill cut in two."""
    kept, is_whole = [], True
    try:
        for record in tf.data.TFRecordDataset(str(path)).as_numpy_iterator():
            if tf.compat.v1.Event.FromString(record).step <= step:
                kept.append(record)
            else:
                is_whole = False
    except tf.errors.DataLossError:
        is_whole = False
    if is_whole:
        return
    temporary = path.with_name(f".unfinished-{secrets.token_hex(4)}")
    with contextlib.closing(tf.io.TFRecordWriter(str(temporary))) as writer:
        for record in kept:
            writer.write(record)
    temporary.replace(path)
