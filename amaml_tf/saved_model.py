"""A learned initialization as a SavedModel that adapts itself, and back as a Keras model.

`save_initialization` writes one folder per version, as model servers expect it:

    directory/
      1/
        saved_model.pb, variables/            the signatures below, for servers of any language
        assets.extra/initialization.keras     the Keras model, for `load_initialization`
      2/
        ...

Every signature takes one task, of any size: requests of different tasks seldom have support sets
of the same size, which an array of tasks would need.

    serving_default     x                              -> predictions, by the initialization
    adapt               support_x, support_y           -> the adapted parameters, by variable path
    adapt_and_predict   support_x, support_y, query_x  -> predictions, after adaptation

Adaptation is the learner's own flow, run in the graph; nothing is kept between requests. A flow
that does not arrive fails the request (INVALID_ARGUMENT) with the message of an `AdaptationError`.
Batch normalization does in all three what it does in the learner: with `batch_statistics=True` it
uses those of the inputs at hand, so the predictions for one x depend on the others beside it.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import tensorflow as tf

from amaml_tf import failure
from amaml_tf.functional import FunctionalModel
from amaml_tf.meta_learner import MetaLearner

_SAVED_MODEL = "saved_model.pb"
_KERAS_MODEL = Path("assets.extra", "initialization.keras")


def save_initialization(
    learner: MetaLearner,
    directory: str | os.PathLike[str],
    version: int | None = None,
    *,
    input_spec: tf.TensorSpec | None = None,
    target_spec: tf.TensorSpec | None = None,
) -> Path:
    """Writes `directory/<version>/`, whole or not at all.

    Args:
        learner: compiled; its model and its way to adapt are exported.
        directory: where the versions lie; made if need be.
        version: a number from 1 on that is not there yet; None: one above the highest.
        input_spec: shape `[None, ...]` and dtype of inputs; None: those of the model's `Input`.
        target_spec: shape `[None, ...]` and dtype of `support_y`; None: those of the outputs, or
            int32 labels where the loss does not take targets like the outputs.

    Returns:
        The folder written.

    Raises:
        ValueError: if the learner is not compiled, the model has several inputs or outputs, the
            version is there already or no number from 1 on, or the folder cannot be written to.
    """
    if learner.function is None:
        raise ValueError(
            "Expected a compiled MetaLearner to export, got one without a loss to adapt by; call "
            "compile(optimizer=..., loss=...) first."
        )
    root = Path(directory)
    target = root / str(_new_version(root, version))
    archive = _archive(learner, input_spec, target_spec)
    try:
        _write(target, archive, learner.model)
    except OSError as error:
        raise ValueError(
            f"Expected {target} to be a folder that can be written, got {error.strerror}; pass "
            "another directory."
        ) from error
    return target


def _write(target: Path, archive: keras.export.ExportArchive, model: keras.Model) -> None:
    # Servers look for folders whose names are numbers: this one they pass over.
    unfinished = target.with_name(f".{target.name}.unfinished-{os.getpid()}")
    unfinished.mkdir(parents=True)
    try:
        # Nobody differentiates a request, and the flow's gradient would need its trajectory.
        options = tf.saved_model.SaveOptions(experimental_custom_gradients=False)
        archive.write_out(str(unfinished), options=options, verbose=False)
        (unfinished / _KERAS_MODEL).parent.mkdir()
        model.save(unfinished / _KERAS_MODEL)
        unfinished.rename(target)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def load_initialization(
    directory: str | os.PathLike[str], custom_objects: dict[str, Any] | None = None
) -> keras.Model:
    """Returns an exported initialization as an ordinary Keras model, not compiled.

    Args:
        directory: as given to `save_initialization` (the highest version is read), or the folder
            of one version.
        custom_objects: classes by name, for layers that Keras does not know.

    Raises:
        FileNotFoundError: if there is no export.
        ValueError: if Keras cannot build the model again.
    """
    path = find_version(directory) / _KERAS_MODEL
    if not path.exists():
        raise FileNotFoundError(
            f"Expected an export of save_initialization, got a SavedModel without {path}; read it "
            "with tf.saved_model.load, or export the initialization again."
        )
    try:
        return keras.models.load_model(path, custom_objects=custom_objects, compile=False)
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"Expected {path} to hold a model that Keras can build again, got {_reason(error)!r}; "
            "pass layers of your own as custom_objects={name: class}, or register them with "
            "keras.saving.register_keras_serializable."
        ) from error


def _reason(error: BaseException) -> str:
    """What began it: Keras wraps the cause into pages of configuration."""
    while error.__context__ is not None:
        error = error.__context__
    return str(error).split(". ")[0]


def find_version(directory: str | os.PathLike[str]) -> Path:
    """Returns the folder of the highest version below `directory`, or `directory` if it is one.

    Raises:
        FileNotFoundError: if there is none.
    """
    root = Path(directory)
    if (root / _SAVED_MODEL).exists():
        return root
    exported = [n for n in _versions(root) if (root / str(n) / _SAVED_MODEL).exists()]
    if not exported:
        found = "a folder without one" if root.is_dir() else "no such folder"
        raise FileNotFoundError(
            f"Expected an exported initialization in {root}, got {found}; write one with "
            "save_initialization or amaml-export."
        )
    return root / str(max(exported))


# -- versions -----------------------------------------------------------------------------------


def _versions(root: Path) -> list[int]:
    names = [path.name for path in root.iterdir()] if root.is_dir() else []
    return [int(name) for name in names if name.isdecimal() and str(int(name)) == name]


def _new_version(root: Path, version: int | None) -> int:
    if version is None:
        return max(_versions(root), default=0) + 1
    if version < 1:
        raise ValueError(
            f"Expected version to be a whole number from 1 on, got {version}; leave it out to "
            "write the next one."
        )
    if (root / str(version)).exists():
        raise ValueError(
            f"Expected a version that is not there yet, got {version}, which is in {root}; remove "
            "it, or leave the version out to write the next one."
        )
    return version


# -- signatures ---------------------------------------------------------------------------------


def _archive(
    learner: MetaLearner, input_spec: tf.TensorSpec | None, target_spec: tf.TensorSpec | None
) -> keras.export.ExportArchive:
    """The signatures; none is compiled by XLA, which not every server has."""
    predict, adapt, adapt_and_predict = _endpoints(learner)
    x = _with_any_size(input_spec or _input_spec(learner.model))
    archive = keras.export.ExportArchive()
    archive.track(learner.model)
    served = archive.add_endpoint("serving_default", predict, [x])
    outputs = served.get_concrete_function().structured_outputs["predictions"]
    y = _with_any_size(target_spec or _target_spec(learner.function.loss, outputs))
    archive.add_endpoint("adapt", adapt, [x, y])
    archive.add_endpoint("adapt_and_predict", adapt_and_predict, [x, y, x])
    return archive


def _endpoints(learner: MetaLearner) -> tuple[Callable[..., dict[str, tf.Tensor]], ...]:
    algorithm, compiled = learner.algorithm, learner.function
    # One task gains nothing by being vectorised.
    function = FunctionalModel(
        learner.model,
        compiled.loss,
        batch_statistics=compiled.batch_statistics,
        adapted=compiled.adapted,
        vectorize=False,
    )
    variables = learner.model.trainable_variables

    @tf.function(autograph=False)
    def adapted_parameters(support_x: tf.Tensor, support_y: tf.Tensor) -> list[tf.Tensor]:
        parameters = [tf.convert_to_tensor(variable) for variable in variables]
        start = algorithm.start(function, parameters, num_tasks=1)
        support = (support_x[tf.newaxis], support_y[tf.newaxis])
        adapted, diagnostics = algorithm.adapt(
            function, function.state(), support, start, differentiable=False
        )
        with tf.control_dependencies(failure.check(diagnostics, algorithm.final_time())):
            return function.unravel(tf.identity(adapted[0]), start.held[0])

    def predictions(parameters: list[tf.Tensor], x: tf.Tensor) -> dict[str, tf.Tensor]:
        outputs, _ = function.predict(parameters, function.state(), x, adapting=False)
        if not tf.is_tensor(outputs):
            raise ValueError(
                f"Expected a model with one output to export, got {type(outputs).__name__} of "
                "several; join them to one, or write signatures with keras.export.ExportArchive."
            )
        return {"predictions": outputs}

    def predict(x: tf.Tensor) -> dict[str, tf.Tensor]:
        return predictions([tf.convert_to_tensor(variable) for variable in variables], x)

    def adapt(support_x: tf.Tensor, support_y: tf.Tensor) -> dict[str, tf.Tensor]:
        values = adapted_parameters(support_x, support_y)
        return {v.path: value for v, value in zip(variables, values, strict=True)}

    def adapt_and_predict(
        support_x: tf.Tensor, support_y: tf.Tensor, query_x: tf.Tensor
    ) -> dict[str, tf.Tensor]:
        return predictions(adapted_parameters(support_x, support_y), query_x)

    return predict, adapt, adapt_and_predict


def _input_spec(model: keras.Model) -> tf.TensorSpec:
    inputs = getattr(model, "inputs", None) or []
    if len(inputs) != 1:
        raise ValueError(
            f"Expected a model with one keras.Input to export, got {len(inputs)} of them; join "
            "several to one, or for a model without pass input_spec=tf.TensorSpec([None, ...])."
        )
    return tf.TensorSpec(inputs[0].shape, inputs[0].dtype)


def _target_spec(loss: Callable[..., Any], outputs: tf.TensorSpec) -> tf.TensorSpec:
    try:
        tf.function(loss, autograph=False).get_concrete_function(outputs, outputs)
    except (TypeError, ValueError):
        return tf.TensorSpec(outputs.shape[:-1], tf.int32)
    return tf.TensorSpec(outputs.shape, outputs.dtype)


def _with_any_size(spec: tf.TensorSpec) -> tf.TensorSpec:
    """Without a fixed number of examples, and without a name, which would become the argument's."""
    return tf.TensorSpec([None, *spec.shape[1:]], spec.dtype)
