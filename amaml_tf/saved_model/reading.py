"""Loading an export as a Keras model."""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Callable, Mapping

import keras

from amaml_tf.aliases import PathLike
from amaml_tf.errors import ExportNotFoundError, UsageError
from amaml_tf.saved_model.versions import KERAS_MODEL, find_version


def load_initialization(
    directory: PathLike, custom_objects: Mapping[str, type | Callable[..., object]] | None = None
) -> keras.Model:
    """Returns an exported initialization as an ordinary Keras model, not compiled.

    Args:
        directory: the folder given to `save_initialization` (the highest version is read), or the
            folder of one version.
        custom_objects: classes by name, for layers that Keras does not know.

    Raises:
        ExportNotFoundError: if there is no export.
        UsageError: if the file is damaged, or Keras cannot rebuild the model.
    """
    path = find_version(directory) / KERAS_MODEL
    if not path.exists():
        raise ExportNotFoundError(
            f"Expected an export of save_initialization, got a SavedModel without {path}; read it "
            "with tf.saved_model.load, or export the initialization again."
        )
    damaged = (
        f"Expected a whole Keras file, got a damaged one, {path}; copy the version again, or "
        "export it again."
    )
    if not zipfile.is_zipfile(path):
        raise UsageError(damaged)
    try:
        # Safe mode runs no code that the file holds, whatever the process has allowed elsewhere.
        return keras.models.load_model(
            path, custom_objects=custom_objects, compile=False, safe_mode=True
        )
    except (OSError, KeyError, zipfile.BadZipFile, zlib.error) as error:
        raise UsageError(damaged) from error
    except (TypeError, ValueError) as error:
        raise UsageError(
            f"Expected {path} to hold a model that Keras can build again, got {_reason(error)!r}; "
            "pass layers of your own as custom_objects={name: class}, or register them with "
            "keras.saving.register_keras_serializable."
        ) from error


def _reason(error: BaseException) -> str:
    """Returns the message of the first error: Keras wraps it in pages of configuration."""
    while error.__context__ is not None:
        error = error.__context__
    return str(error).split(". ")[0]
