"""What a run keeps of its task family, so that it can be exported without the family's data."""

from __future__ import annotations

import json
import pathlib

import keras
import tensorflow as tf

from amaml_tf.aliases import PathLike
from amaml_tf.errors import UsageError
from amaml_tf.files import write_atomically
from amaml_tf.tasks import TaskFamily
from amaml_tf.units import Units

TASK_FILE = "task.json"


def write_task(family: TaskFamily, workdir: PathLike) -> None:
    """Writes sizes, loss and units of a family to the folder of a run.

    A family whose loss Keras cannot write down is made anew, of its data, for an export.
    """
    units = family.units
    try:
        loss = keras.losses.serialize(family.loss)
        keras.losses.deserialize(loss)
    except (AttributeError, TypeError, ValueError):
        return
    (num_support, num_query), (num_test_support, num_test_query) = map(
        family.sizes, ("train", family.splits[-1])
    )
    values = {
        "kind": family.kind,
        "input_shape": family.input_shape,
        "num_outputs": family.num_outputs,
        "num_support": num_support,
        "num_query": num_query,
        "num_test_support": num_test_support,
        "num_test_query": num_test_query,
        "dtype": family.dtype,
        "loss": loss,
        "units": None if units is None else units.values(),
        "vocabulary_size": getattr(family, "vocabulary_size", None),
    }
    write_atomically(pathlib.Path(workdir) / TASK_FILE, json.dumps(values) + "\n")


def stored_task(workdir: PathLike) -> TaskFamily | None:
    """Returns a family with the sizes, the loss and the units of that of a run, without episodes.

    Returns:
        The family, or None if the run has no such file, as those of earlier versions.

    Raises:
        UsageError: the file is damaged.
    """
    path = pathlib.Path(workdir) / TASK_FILE
    if not path.is_file():
        return None
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        loss = keras.losses.deserialize(values.pop("loss"))
        units = values.pop("units")
        tokens = values.pop("vocabulary_size", None)
        units = None if units is None else Units.from_values(units)
        return _StoredFamily(loss, units, tokens, **values)
    except (AttributeError, KeyError, RecursionError, TypeError, ValueError) as error:
        raise UsageError(
            f"Expected {path} to say what the tasks of the run are, got a file that does not "
            f"({error}); remove it, and export with --data_dir."
        ) from error


class _StoredFamily(TaskFamily):
    """A family that has no episodes."""

    splits = ()

    def __init__(
        self, loss: keras.losses.Loss, units: Units | None, tokens: int | None, **sizes: object
    ) -> None:
        super().__init__(**sizes)  # type: ignore[arg-type]
        if tokens is not None:
            self.vocabulary_size = tokens
        self._loss = loss
        self._units = units

    @property
    def loss(self) -> keras.losses.Loss:
        return self._loss

    @property
    def units(self) -> Units | None:
        return self._units

    def _stream(self, split: str, seed: int, first: int) -> tf.data.Dataset:
        raise UsageError(f"Expected a family with episodes, got that of a stored run ({split}).")
