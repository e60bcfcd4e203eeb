"""Writing an export: a version is written completely or not at all."""

from __future__ import annotations

import contextlib
import errno
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf

from amaml_tf.aliases import PathLike
from amaml_tf.episodes import Episodes
from amaml_tf.errors import UsageError
from amaml_tf.functional.query_statistics import require_query_statistics
from amaml_tf.functional.scopes import scope
from amaml_tf.learner.meta_learner import MetaLearner
from amaml_tf.saved_model import versions
from amaml_tf.saved_model.adapting import Adapter
from amaml_tf.saved_model.bounds import Bounds, default_bounds
from amaml_tf.saved_model.class_names import ClassNames
from amaml_tf.saved_model.contract import Contract, contract_of, write_contract
from amaml_tf.saved_model.interface import interface_of
from amaml_tf.saved_model.lite import LITE_MODEL, lite_model
from amaml_tf.saved_model.onnx_models import onnx_models
from amaml_tf.saved_model.signatures import ConcreteFunction, Signature, Signatures
from amaml_tf.saved_model.stored_statistics import StoredStatistics, require_statistics
from amaml_tf.saved_model.warmup import (
    example_requests,
    refuse_unless_alike,
    write_warmup,
)
from amaml_tf.units import Units
from amaml_tf.user_files import require_readable_name


def save_initialization(
    learner: MetaLearner,
    directory: PathLike,
    version: int | None = None,
    *,
    input_spec: tf.TensorSpec | None = None,
    target_spec: tf.TensorSpec | None = None,
    units: Units | None = None,
    class_names: ClassNames = (),
    bounds: Bounds | None = None,
    query_statistics: str = "support",
    statistics_from: Iterable[Episodes] | StoredStatistics | None = None,
    onnx: bool = False,
    lite_support_rows: int | None = None,
    keep_versions: int | None = None,
    check: bool = True,
    about: Mapping[str, object] | None = None,
) -> Path:
    """Writes `directory/<version>/`, completely or not at all.

    Several exporters can write to one folder at a time.

    Args:
        learner: a compiled learner; its model and its way to adapt are exported.
        directory: folder of the versions; created if needed.
        version: a number from 1 on that does not exist yet; None: one above the highest.
        input_spec: shape `[None, ...]` and dtype of inputs; None: those of the model's `Input`.
        target_spec: shape `[None, ...]` and dtype of `support_y`; None: those of the outputs, or
            int32 labels where the loss does not take targets like the outputs.
        units: raw units of requests and answers, such as `family.units`; None: those of the model.
        class_names: names of the classes of a classifier, in the order of its labels, or of several
            classifiers, by the names of outputs. Answers then have `probabilities` and `classes` as
            well. A classifier has an output for each class and a categorical cross-entropy, or one
            output and a binary cross-entropy. Default: none.
        bounds: what a request may ask for; None: see `default_bounds`.
        query_statistics: whose statistics batch normalization uses in predictions after adaptation,
            if it uses those of the examples at hand: "support" (default), so that an answer does
            not depend on the other inputs of the request, or "batch", those of the inputs (the
            transductive setting of the papers).
        statistics_from: batches of episodes of training, from whose support sets the statistics
            are gathered that batch normalization keeps; see `StoredStatistics`. They are stored in
            the learner's model, and used by `serving_default` and `initialization.keras`. None:
            the model has statistics, or no batch normalization.
        onnx: whether to write `serving_default.onnx` and `predict_with.onnx` as well, see
            `onnx_models`.
        lite_support_rows: write `initialization.tflite` as well, for so many support examples, see
            `lite_model`. None: do not.
        keep_versions: how many versions to keep, the highest ones; None: all.
        check: whether to load what is written and compare its answers with those of this process
            before it gets its number.
        about: facts for the contract in the export: `task`, `settings`, `meta_step`, `evaluation`.

    Returns:
        The folder written.

    Raises:
        UsageError: if the learner is not compiled, a weight of the model is not finite, the model
            has no `Input` and there is no `input_spec`, the solver cannot be bounded,
            `target_spec`, `units` or `class_names` do not fit the model, its stored statistics are
            those of a new network, the version exists already or is below 1, or the folder cannot
            be written to.
        ExportError: if the export, loaded again, does not answer as the learner does.
    """
    _check(learner, keep_versions, query_statistics)
    root = versions.local_folder(directory)
    require_readable_name(root, "an export")
    versions.require_free(root, version)
    interface = interface_of(
        learner.function,
        input_spec=input_spec,
        target_spec=target_spec,
        units=units,
        class_names=class_names,
        query_statistics=query_statistics,
    )
    about = {**(about or {}), **_store_statistics(learner, statistics_from)}
    bounds = bounds or default_bounds(learner.algorithm)
    adapter = Adapter(learner.function, learner.algorithm, interface, bounds)
    files = onnx_models(adapter) if onnx else {}
    if lite_support_rows is not None:
        files[LITE_MODEL] = _lite(learner, adapter, lite_support_rows)
    try:
        with versions.unfinished(root) as folder:
            _write(folder, learner, adapter, about, files, check)
            written = versions.publish(folder, root, version)
        if keep_versions is not None:
            versions.keep_newest(root, keep_versions, written)
    except OSError as error:
        raise UsageError(
            f"Expected {root} to be a folder that can be written, got {error.strerror or error}; "
            "make room there, or pass another directory."
        ) from error
    return written


def _check(learner: MetaLearner, keep_versions: int | None, query_statistics: str) -> None:
    if not learner.compiled:
        raise UsageError(
            "Expected a compiled MetaLearner to export, got one without a loss to adapt by; call "
            "compile(optimizer=..., loss=...) first."
        )
    if keep_versions is not None and not versions.is_count(keep_versions):
        raise UsageError(
            f"Expected keep_versions to be a whole number from 1 on, got {keep_versions!r}; leave "
            "it out to keep all."
        )
    for variable in learner.model.variables:
        if variable.dtype.startswith(("float", "bfloat")) and not np.isfinite(variable).all():
            raise UsageError(
                f"Expected a model of finite weights to export, got NaN or infinity in "
                f"{variable.path}; export an earlier checkpoint."
            )
    require_query_statistics(query_statistics)


def _lite(learner: MetaLearner, adapter: Adapter, support_rows: int) -> bytes:
    interface = adapter.interface
    return lite_model(
        learner,
        support_rows,
        units=interface.units,
        target_spec=interface.targets.get(""),
        query_statistics="support" if interface.statistics else "batch",
    )


def _store_statistics(
    learner: MetaLearner, given: Iterable[Episodes] | StoredStatistics | None
) -> dict[str, int]:
    """Stores the statistics of batch normalization; returns of how many tasks they are."""
    if given is None:
        require_statistics(learner)
        return {}
    if not isinstance(given, StoredStatistics):
        given = StoredStatistics.gathered(learner, given)
    given.store(learner)
    return {"statistics_of": given.num_tasks} if given.values else {}


def _write(
    folder: Path,
    learner: MetaLearner,
    adapter: Adapter,
    about: Mapping[str, object],
    files: Mapping[str, bytes],
    check: bool,
) -> None:
    signatures = Signatures(adapter).all
    functions = {each.name: each.traced() for each in signatures}
    # Requests are not differentiated, and the flow's gradient would need its trajectory.
    options = tf.saved_model.SaveOptions(experimental_custom_gradients=False)
    module = _module(functions, [learner.model, *adapter.layers])
    with _names_of_graphs(module.all_variables), _as_of_the_system():
        tf.saved_model.save(module, str(folder), signatures=functions, options=options)
    (folder / versions.EXTRA).mkdir()
    _keras_model(learner, adapter).save(folder / versions.KERAS_MODEL)
    write_contract(folder, _contract(learner, adapter, signatures, functions, about))
    for name, content in files.items():
        (folder / versions.EXTRA / name).write_bytes(content)
    requests = example_requests(adapter, signatures, functions)
    with _as_of_the_system():
        write_warmup(folder, requests)
    if check:
        refuse_unless_alike(folder, functions, requests)


@contextlib.contextmanager
def _names_of_graphs(variables: Sequence[tf.Variable]) -> Iterator[None]:
    """Gives variables names that a graph takes: Keras takes any for layers and weights."""
    before = [variable.name for variable in variables]
    try:
        for variable, name in zip(variables, before, strict=True):
            parts = name.removesuffix(":0").split("/")
            variable._handle_name = "/".join(map(scope, parts)) + ":0"  # noqa: SLF001 - it has no setter
        yield
    finally:
        for variable, name in zip(variables, before, strict=True):
            variable._handle_name = name  # noqa: SLF001 - see above


@contextlib.contextmanager
def _as_of_the_system() -> Iterator[None]:
    """Raises TensorFlow's errors in writing files as those of the system.

    (It has one error for a full disk and for a lack of memory.)
    """
    try:
        yield
    except tf.errors.OpError as error:
        raise OSError(errno.EIO, error.message.strip().rpartition("; ")[2]) from error


def _module(functions: Mapping[str, ConcreteFunction], layers: Sequence[keras.Layer]) -> tf.Module:
    """Returns what the functions need: their variables, and the tables of lookup layers.

    (`keras.export.ExportArchive` would do the same, but traces every function twice.)
    """
    module = tf.Module()
    module.all_variables = [v for function in functions.values() for v in function.variables]
    module.tables = [
        child
        for layer in layers
        for child in tf.train.TrackableView(layer).descendants()
        if isinstance(child, tf.saved_model.experimental.TrackableResource)
    ]
    for name, function in functions.items():
        setattr(module, name, function)
    return module


def _keras_model(learner: MetaLearner, adapter: Adapter) -> keras.Model:
    """Returns the model of `initialization.keras`, which takes what `serving_default` takes."""
    units = adapter.interface.units
    return learner.model if units is None else units.in_raw_units(learner.model)


def _contract(
    learner: MetaLearner,
    adapter: Adapter,
    signatures: Sequence[Signature],
    functions: Mapping[str, ConcreteFunction],
    about: Mapping[str, object],
) -> Contract:
    outputs = {name: function.structured_outputs for name, function in functions.items()}
    return contract_of(learner, adapter, signatures, outputs, about)
