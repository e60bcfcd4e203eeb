"""A trace of some meta-steps, for TensorBoard's profiler."""

from __future__ import annotations

import pathlib

import keras
import tensorflow as tf


class Profile(keras.callbacks.Callback):
    """Traces meta-steps after the first one of this process, which is mostly compilation.

    The trace is written when `num_steps` are done, or when a call of `fit` ends before.
    `tensorboard --logdir=FOLDER` shows it, with the plugin `tensorboard-plugin-profile`.

    Args:
        folder: where `plugins/profile/` is made.
        num_steps: how many meta-steps to trace, >= 1.
    """

    def __init__(self, folder: pathlib.Path, num_steps: int) -> None:
        super().__init__()
        self._folder, self._num_steps = folder, num_steps
        self._begun = 0
        self._marker: tf.profiler.experimental.Trace | None = None

    def on_train_batch_begin(self, batch: int, logs: dict[str, float] | None = None) -> None:
        self._begun += 1
        if self._begun == 2:
            tf.profiler.experimental.start(str(self._folder))
        if 2 <= self._begun <= self._num_steps + 1:
            self._marker = tf.profiler.experimental.Trace("meta_step", step_num=batch, _r=1)
            self._marker.__enter__()

    def on_train_batch_end(self, batch: int, logs: dict[str, float] | None = None) -> None:
        if self._marker is None:
            return
        float((logs or {}).get("loss", 0.0))  # waits for an accelerator
        self._marker.__exit__(None, None, None)
        self._marker = None
        if self._begun == self._num_steps + 1:
            tf.profiler.experimental.stop()

    def on_train_end(self, logs: dict[str, float] | None = None) -> None:
        if 2 <= self._begun <= self._num_steps:
            tf.profiler.experimental.stop()
            self._begun = self._num_steps + 1
