"""The signatures of an export: functions of one task that run in the graph."""

from __future__ import annotations

from collections.abc import Callable

import keras
import tensorflow as tf

from amaml_tf.aliases import LossFunction
from amaml_tf.errors import UsageError
from amaml_tf.flow import failure
from amaml_tf.learner.meta_learner import MetaLearner


def archive_of(
    learner: MetaLearner, input_spec: tf.TensorSpec | None, target_spec: tf.TensorSpec | None
) -> keras.export.ExportArchive:
    """Returns the signatures; XLA compiles none of them, because not every server has XLA."""
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
    # Vectorisation gains nothing for a single task.
    algorithm, function = learner.algorithm, learner.function.side_by_side()
    variables = learner.model.trainable_variables

    @tf.function(autograph=False)
    def adapted_parameters(support_x: tf.Tensor, support_y: tf.Tensor) -> list[tf.Tensor]:
        support = (support_x[tf.newaxis], support_y[tf.newaxis])
        adapted, diagnostics = algorithm.adapt(function, function.state(), support)
        held = function.initialization(1).held
        with tf.control_dependencies(failure.check(diagnostics, algorithm.final_time())):
            return function.unravel(tf.identity(adapted[0]), held[0])

    def predictions(parameters: list[tf.Tensor], x: tf.Tensor) -> dict[str, tf.Tensor]:
        outputs, _ = function.predict(parameters, function.state(), x, adapting=False)
        if not tf.is_tensor(outputs):
            raise UsageError(
                f"Expected a model with one output to export, got {type(outputs).__name__} of "
                "several; join them into one, or write signatures with keras.export.ExportArchive."
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
        raise UsageError(
            f"Expected a model with one keras.Input to export, got {len(inputs)} of them; join "
            "several into one, or, for a model without one, pass "
            "input_spec=tf.TensorSpec([None, ...])."
        )
    return tf.TensorSpec(inputs[0].shape, inputs[0].dtype)


def _target_spec(loss: LossFunction, outputs: tf.TensorSpec) -> tf.TensorSpec:
    try:
        tf.function(loss, autograph=False).get_concrete_function(outputs, outputs)
    except (TypeError, ValueError):
        return tf.TensorSpec(outputs.shape[:-1], tf.int32)
    return tf.TensorSpec(outputs.shape, outputs.dtype)


def _with_any_size(spec: tf.TensorSpec) -> tf.TensorSpec:
    """Returns `spec` for any number of examples, and without its name.

    The name would become the name of the argument.
    """
    return tf.TensorSpec([None, *spec.shape[1:]], spec.dtype)
