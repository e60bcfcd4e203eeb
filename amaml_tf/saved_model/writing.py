"""Writing an export: a version is written completely or not at all."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import keras
import tensorflow as tf

from amaml_tf.aliases import PathLike
from amaml_tf.errors import UsageError
from amaml_tf.learner.meta_learner import MetaLearner
from amaml_tf.saved_model.signatures import archive_of
from amaml_tf.saved_model.versions import KERAS_MODEL, new_version


def save_initialization(
    learner: MetaLearner,
    directory: PathLike,
    version: int | None = None,
    *,
    input_spec: tf.TensorSpec | None = None,
    target_spec: tf.TensorSpec | None = None,
) -> Path:
    """Writes `directory/<version>/`, completely or not at all.

    Args:
        learner: a compiled learner; its model and its way to adapt are exported.
        directory: folder of the versions; created if needed.
        version: a number from 1 on that does not exist yet; None: one above the highest.
        input_spec: shape `[None, ...]` and dtype of inputs; None: those of the model's `Input`.
        target_spec: shape `[None, ...]` and dtype of `support_y`; None: those of the outputs, or
            int32 labels where the loss does not take targets like the outputs.

    Returns:
        The folder written.

    Raises:
        UsageError: if the learner is not compiled, the model has several inputs or outputs, the
            version exists already or is below 1, or the folder cannot be written to.
    """
    if not learner.compiled:
        raise UsageError(
            "Expected a compiled MetaLearner to export, got one without a loss to adapt by; call "
            "compile(optimizer=..., loss=...) first."
        )
    root = Path(directory)
    target = root / str(new_version(root, version))
    archive = archive_of(learner, input_spec, target_spec)
    try:
        _write(target, archive, learner.model)
    except OSError as error:
        raise UsageError(
            f"Expected {target} to be a folder that can be written, got {error.strerror}; pass "
            "another directory."
        ) from error
    return target


def _write(target: Path, archive: keras.export.ExportArchive, model: keras.Model) -> None:
    # Servers look for folders whose names are numbers, so they ignore this one.
    unfinished = target.with_name(f".{target.name}.unfinished-{os.getpid()}")
    unfinished.mkdir(parents=True)
    try:
        # Requests are not differentiated, and the flow's gradient would need its trajectory.
        options = tf.saved_model.SaveOptions(experimental_custom_gradients=False)
        archive.write_out(str(unfinished), options=options, verbose=False)
        (unfinished / KERAS_MODEL).parent.mkdir()
        model.save(unfinished / KERAS_MODEL)
        unfinished.rename(target)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
