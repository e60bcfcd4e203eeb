"""New metrics with the settings of given ones, for a model that is measured by itself."""

from __future__ import annotations

import keras
import tensorflow as tf

from amaml_tf.aliases import Tensors
from amaml_tf.learner.lossy_configs import lacking_in_config
from amaml_tf.learner.task_metrics import Metrics


def remade(metrics: Metrics | None) -> Metrics | None:
    """Returns new metrics with the settings of `metrics`."""
    return tf.nest.map_structure(
        lambda m: _remade(m) if isinstance(m, keras.metrics.Metric) else m, metrics
    )


def _remade(metric: keras.metrics.Metric) -> keras.metrics.Metric:
    try:
        made = type(metric).from_config(metric.get_config())
    except (TypeError, ValueError, NotImplementedError):
        return _Twin(metric)
    if isinstance(metric, keras.metrics.MeanMetricWrapper):
        # The configurations of some metrics lack arguments: that of CosineSimilarity its axis.
        made._fn_kwargs = dict(metric._fn_kwargs)  # noqa: SLF001 - Keras has no public name
    elif lacking_in_config(metric):
        return _Twin(metric)
    return made


class _Twin(keras.metrics.Metric):
    """A metric with the settings of another one, whatever these are, and a state of its own."""

    def __init__(self, metric: keras.metrics.Metric) -> None:
        super().__init__(name=metric.name, dtype=metric.dtype)
        metric.reset_state()
        self._metric = metric
        self._state = [
            self.add_variable(v.shape, keras.initializers.Constant(v.numpy()), v.dtype)
            for v in metric.variables
        ]
        self._first = [v.numpy() for v in metric.variables]

    def update_state(
        self, y_true: Tensors, y_pred: Tensors, sample_weight: Tensors | None = None
    ) -> None:
        state = [v.value for v in self._state]
        new = self._metric.stateless_update_state(state, y_true, y_pred, sample_weight)
        for variable, value in zip(self._state, new, strict=True):
            variable.assign(value)

    def result(self) -> tf.Tensor:
        return self._metric.stateless_result([v.value for v in self._state])

    def reset_state(self) -> None:
        for variable, value in zip(self._state, self._first, strict=True):
            variable.assign(value)
