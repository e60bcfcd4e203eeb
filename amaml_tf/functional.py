"""A Keras model and its loss as pure functions of parameter vectors, for many tasks at once."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import keras
import tensorflow as tf

from amaml_tf.flat import Layout


class FunctionalModel:
    """The losses of a Keras model on episodes, as functions of its parameters.

    The parameters of a task are two vectors: `adapted`, the state of the gradient flow, and
    `held`, the trainable parameters that adaptation leaves alone (often none). All methods take a
    batch of tasks, task axis first, and treat every task apart.

    Layers behave as follows. *Dropout and other noise* is active during adaptation, with one mask
    for a whole solve, and off in predictions. *Batch normalization* uses the statistics of the
    batch it sees, in adaptation and in predictions (the transductive setting of the MAML papers),
    or the stored ones throughout if `batch_statistics` is false; a frozen batch normalization
    layer always uses the stored ones. Statistics and seeds are never part of the flow's state.

    Args:
        model: a built Keras model whose trainable variables have one dtype, float32 or float64.
        loss: a `keras.losses.Loss`, its name, or a function of (y_true, y_pred).
        batch_statistics: see above.
        adapted: for every trainable variable, whether adaptation changes it; None for all.
        vectorize: evaluate the tasks as one vectorised program (`tf.vectorized_map`), or side by
            side (`tf.map_fn`); which one is faster depends on layers and device.

    Raises:
        ValueError: if the model is not built, has no variable to adapt, mixes dtypes, or the loss
            is a structure of several losses.
    """

    def __init__(
        self,
        model: keras.Model,
        loss: Any,
        *,
        batch_statistics: bool = True,
        adapted: Sequence[bool] | None = None,
        vectorize: bool = True,
    ) -> None:
        _check_model(model)
        self.model = model
        self.batch_statistics = batch_statistics
        self.vectorize = vectorize
        self.loss = as_loss(loss, self.dtype)
        variables = model.trainable_variables
        self.adapted = tuple(adapted) if adapted is not None else (True,) * len(variables)
        if len(self.adapted) != len(variables) or not any(self.adapted):
            raise ValueError(
                f"Expected `adapted` to mark at least one of the {len(variables)} trainable "
                f"variables of the model, got {adapted}."
            )
        chosen, rest = self.split(variables)
        self.layout, self.held_layout = Layout.of(chosen), Layout.of(rest)
        # Traced once and called from every loop: a solver's graph holds one copy of each.
        self.gradient = tf.function(self._gradient, autograph=False)
        self.curvature = tf.function(self._curvature, autograph=False)
        self.query = tf.function(self._query, autograph=False)
        self.query_gradient = tf.function(self._query_gradient, autograph=False)

    @property
    def dtype(self) -> tf.DType:
        """Of the parameter vectors."""
        return tf.as_dtype(self.model.trainable_variables[0].dtype)

    def split(self, values: Sequence[Any]) -> tuple[list[Any], list[Any]]:
        """Splits a list aligned with the trainable variables into adapted and held ones."""
        pairs = list(zip(values, self.adapted, strict=True))
        return [v for v, chosen in pairs if chosen], [v for v, chosen in pairs if not chosen]

    def merge(self, chosen: Sequence[Any], rest: Sequence[Any]) -> list[Any]:
        """Undoes `split`."""
        one, other = iter(chosen), iter(rest)
        return [next(one) if adapted else next(other) for adapted in self.adapted]

    def ravel(self, parameters: Sequence[Any], batch_ndims: int = 0) -> tuple[Any, Any]:
        """Returns the vectors (adapted, held) of a list aligned with the trainable variables."""
        chosen, rest = self.split(parameters)
        adapted = self.layout.ravel(chosen, batch_ndims)
        held = self.held_layout.ravel(rest, batch_ndims) if rest else adapted[..., :0]
        return adapted, held

    def unravel(self, adapted: tf.Tensor, held: tf.Tensor) -> list[tf.Tensor]:
        """Undoes `ravel`, for vectors with any leading dimensions."""
        rest = self.held_layout.unravel(held) if self.held_layout.shapes else []
        return self.merge(self.layout.unravel(adapted), rest)

    def state(self) -> list[tf.Tensor]:
        """Returns the values of the non-trainable variables: statistics, and seeds of noise."""
        return [tf.convert_to_tensor(v) for v in self.model.non_trainable_variables]

    # -- one task -------------------------------------------------------------------------------

    def predict(
        self, parameters: Sequence[tf.Tensor], state: Sequence[tf.Tensor], x: Any, adapting: bool
    ) -> tuple[Any, tf.Tensor]:
        """Returns the outputs of the model for one task, and the sum of its layers' losses."""
        with _batch_statistics(self.model, self.batch_statistics), _twice_differentiable_moments():
            outputs, _, losses = self.model.stateless_call(
                list(parameters), list(state), x, training=adapting, return_losses=True
            )
        penalty = tf.add_n(losses) if losses else tf.zeros([], self.dtype)
        return outputs, tf.cast(penalty, self.dtype)

    def statistics_of(
        self, parameters: Sequence[tf.Tensor], state: Sequence[tf.Tensor], x: Any
    ) -> list[tf.Tensor]:
        """Returns `state` with the batch normalization statistics of the inputs `x` of one task.

        Unchanged with `batch_statistics=False`.
        """
        if not self.batch_statistics:
            return list(state)
        layers = [layer for layer in _batch_normalizations(self.model) if layer.trainable]
        momenta = [layer.momentum for layer in layers]
        for layer in layers:
            layer.momentum = 0.0  # the moving average becomes the statistic of this batch
        try:
            _, statistics = self.model.stateless_call(
                list(parameters), list(state), x, training=True
            )
        finally:
            for layer, momentum in zip(layers, momenta, strict=True):
                layer.momentum = momentum
        return statistics

    def _task_loss(
        self, adapted: Any, held: Any, state: Any, x: Any, y: Any, adapting: bool
    ) -> tuple[tf.Tensor, Any]:
        outputs, penalty = self.predict(self.unravel(adapted, held), state, x, adapting)
        return tf.cast(self.loss(y, outputs), self.dtype) + penalty, outputs

    # -- a batch of tasks -----------------------------------------------------------------------

    def _gradient(self, adapted: Any, held: Any, state: Any, x: Any, y: Any) -> tf.Tensor:
        """Returns ∇L of the support loss with respect to `adapted`, `[B, P]`."""

        def one(task: Any) -> tf.Tensor:
            vector, held, x, y = task
            with tf.GradientTape(watch_accessed_variables=False) as tape:
                tape.watch(vector)
                loss, _ = self._task_loss(vector, held, state, x, y, adapting=True)
            return _dense_gradient(tape, loss, vector)

        return self._map(one, (adapted, held, x, y), tf.TensorSpec(adapted.shape[1:], self.dtype))

    def _curvature(
        self, adapted: Any, held: Any, state: Any, x: Any, y: Any, vector: Any
    ) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        """Returns ∇L, the product of the Hessian ∇²L with `vector`, and that of ∂²L/∂held∂adapted.

        Shapes `[B, P]`, `[B, P]`, `[B, Q]`.
        """

        def one(task: Any) -> tuple[tf.Tensor, ...]:
            point, held, x, y, direction = task
            with tf.GradientTape(watch_accessed_variables=False) as outer:
                outer.watch([point, held])
                with tf.GradientTape(watch_accessed_variables=False) as inner:
                    inner.watch(point)
                    loss, _ = self._task_loss(point, held, state, x, y, adapting=True)
                gradient = _dense_gradient(inner, loss, point)
            products = outer.gradient(
                gradient,
                [point, held],
                output_gradients=direction,
                unconnected_gradients=tf.UnconnectedGradients.ZERO,
            )
            return gradient, *(tf.convert_to_tensor(product) for product in products)

        spec = [tf.TensorSpec(v.shape[1:], self.dtype) for v in (adapted, adapted, held)]
        return self._map(one, (adapted, held, x, y, vector), tuple(spec))

    def _query(self, adapted: Any, held: Any, state: Any, x: Any, y: Any) -> tuple[Any, Any]:
        """Returns the query losses `[B]` and the outputs of the model."""

        def one(task: Any) -> tuple[Any, Any]:
            vector, held, x, y = task
            return self._task_loss(vector, held, state, x, y, adapting=False)

        scalar = tf.TensorSpec([], self.dtype)
        spec = (scalar, self._outputs_spec(adapted, held, state, x))
        return self._map(one, (adapted, held, x, y), spec)

    def _query_gradient(
        self, adapted: Any, held: Any, state: Any, x: Any, y: Any
    ) -> tuple[Any, ...]:
        """Returns query losses `[B]`, their gradients `[B, P]` and `[B, Q]`, and the outputs."""

        def one(task: Any) -> tuple[Any, ...]:
            vector, held, x, y = task
            with tf.GradientTape(watch_accessed_variables=False) as tape:
                tape.watch([vector, held])
                loss, outputs = self._task_loss(vector, held, state, x, y, adapting=False)
            gradients = tape.gradient(
                loss, [vector, held], unconnected_gradients=tf.UnconnectedGradients.ZERO
            )
            return loss, *(tf.convert_to_tensor(g) for g in gradients), outputs

        vectors = [tf.TensorSpec(v.shape[1:], self.dtype) for v in (adapted, held)]
        scalar = tf.TensorSpec([], self.dtype)
        spec = (scalar, *vectors, self._outputs_spec(adapted, held, state, x))
        return self._map(one, (adapted, held, x, y), spec)

    def _outputs_spec(self, adapted: Any, held: Any, state: Any, x: Any) -> Any:
        if self.vectorize:
            return None  # tf.vectorized_map finds out by itself
        vector, rest, x = tf.nest.map_structure(lambda v: v[0], (adapted, held, x))
        outputs, _ = self.predict(self.unravel(vector, rest), state, x, adapting=False)
        return tf.nest.map_structure(tf.type_spec_from_value, outputs)

    def _map(self, one: Callable[[Any], Any], tasks: Any, spec: Any) -> Any:
        if self.vectorize:
            return tf.vectorized_map(one, tasks, warn=False)
        return tf.map_fn(one, tasks, fn_output_signature=spec, parallel_iterations=8)


def as_loss(loss: Any, dtype: tf.DType) -> Callable[[Any, Any], tf.Tensor]:
    """Returns a function of (y_true, y_pred) with a scalar value for a Keras loss of any form.

    A Keras loss object rounds what it is given to its own type, which is float32 unless it was
    told otherwise; here it computes in `dtype` if that is wider.
    """
    if isinstance(loss, (dict, list, tuple)) or loss is None:
        raise ValueError(
            f"Expected one loss (a keras.losses.Loss, its name, or a function), got {loss!r}. "
            "For several outputs, write a function that adds their losses."
        )
    function = keras.losses.get(loss)
    if isinstance(function, keras.losses.Loss):
        if tf.as_dtype(function.dtype).size < dtype.size:
            function = copy.copy(function)
            # There is no public way to give a loss another type.
            function._dtype_policy = keras.DTypePolicy(dtype.name)  # noqa: SLF001
            function._dtype = dtype.name  # noqa: SLF001
        return function
    return lambda y_true, y_pred: tf.reduce_mean(function(y_true, y_pred))


def is_noise(variable: keras.Variable) -> bool:
    """Returns whether a non-trainable variable is the seed of a layer's random numbers."""
    return variable.path.endswith("seed_generator_state")


def _check_model(model: keras.Model) -> None:
    if not model.built:
        raise ValueError(
            f"Expected a built model, got {model.name!r} without variables. Begin it with "
            "keras.Input, or call it once on a batch."
        )
    dtypes = sorted({str(variable.dtype) for variable in model.trainable_variables})
    if not dtypes:
        raise ValueError(
            f"Expected {model.name!r} to have trainable variables, found none. Is every layer "
            "frozen (`trainable = False`)?"
        )
    if len(dtypes) > 1 or dtypes[0] not in ("float32", "float64"):
        raise ValueError(
            f"Expected the trainable variables of {model.name!r} to be all float32 or all "
            f"float64, got {', '.join(dtypes)}."
        )


def _dense_gradient(tape: tf.GradientTape, loss: tf.Tensor, vector: tf.Tensor) -> tf.Tensor:
    gradient = tape.gradient(loss, vector, unconnected_gradients=tf.UnconnectedGradients.ZERO)
    return tf.convert_to_tensor(gradient)


def _batch_normalizations(model: keras.Model) -> list[keras.layers.BatchNormalization]:
    layers = model._flatten_layers()  # noqa: SLF001 - Keras has no public recursive list
    return [layer for layer in layers if isinstance(layer, keras.layers.BatchNormalization)]


@contextlib.contextmanager
def _twice_differentiable_moments() -> Iterator[None]:
    """Makes the normalization layers traced inside right in their second derivatives.

    `tf.nn.moments`, which Keras calls, stops the gradient of the mean inside of the variance. The
    first derivative does not need it, since deviations from the mean add up to zero; the second
    one does, and Hessian-vector products come out wrong by a part in a thousand and more.
    """

    def moments(
        x: tf.Tensor, axes: Any, shift: Any = None, keepdims: bool = False, name: Any = None
    ) -> tuple[tf.Tensor, tf.Tensor]:
        del shift, name
        mean = tf.reduce_mean(x, axes, keepdims=True)
        variance = tf.reduce_mean(tf.square(x - mean), axes, keepdims=keepdims)
        return (mean if keepdims else tf.squeeze(mean, axes)), variance

    stopped = tf.nn.moments
    tf.nn.moments = moments
    try:
        yield
    finally:
        tf.nn.moments = stopped


@contextlib.contextmanager
def _batch_statistics(model: keras.Model, batch_statistics: bool) -> Iterator[None]:
    """Makes every batch normalization layer use batch (or stored) statistics, whatever `training`.

    Keras ties this choice to `training`, which also switches dropout; adaptation and prediction
    need them apart.
    """
    layers = _batch_normalizations(model)

    def call_with_statistics(layer: keras.layers.BatchNormalization) -> Callable[..., Any]:
        call = type(layer).call

        def forced(inputs: Any, training: Any = None, mask: Any = None) -> Any:
            del training
            return call(layer, inputs, training=batch_statistics, mask=mask)

        return forced

    for layer in layers:
        object.__setattr__(layer, "call", call_with_statistics(layer))
    try:
        yield
    finally:
        for layer in layers:
            object.__delattr__(layer, "call")
