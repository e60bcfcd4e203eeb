"""Changes to the behaviour of Keras and TensorFlow that the gradient flow needs.

Eight functions are replaced permanently when the first model is traced: `tf.nn.moments`,
`BatchNormalization.call`, `Embedding.call`, `CategoryEncoding.call`, the scaling of losses under a
`tf.distribute.Strategy`, the one by which Keras asks for a GPU before it takes a kernel of cuDNN
for an LSTM or GRU, the one by which it keeps what a stateless call assigns, and the one that makes
a layer's scope in a graph (`scopes.py`). The replacements do what the originals do, except in a
thread that is inside one of the contexts below. Therefore threads can trace at the same time, and
other code in the process sees no difference. (Scopes alone differ everywhere, where the originals
fail.)
`tests/functional/test_keras_patches.py` asserts the behaviour of Keras and TensorFlow that makes
each patch necessary, and fails when this behaviour changes.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import threading
from collections.abc import Callable, Iterator
from typing import Any, TypeAlias

import keras
import tensorflow as tf

# Keras does not export the function that divides a loss by the number of replicas.
from keras.src.losses import loss as losses

from amaml_tf.errors import UsageError
from amaml_tf.functional.scopes import replaced_scope

#: A function of a layer and what it is given, which returns what the layer should read instead.
Reading: TypeAlias = Callable[
    ["keras.layers.Embedding | keras.layers.CategoryEncoding", tf.Tensor], tf.Tensor
]


class _Wanted(threading.local):
    """The behaviour that the current thread requests.

    Attributes:
        twice_differentiable: moments have correct second derivatives, and LSTM and GRU have any.
        batch_statistics: whether batch normalization uses batch (or stored) statistics, whatever
            `training` is; None leaves the choice to Keras.
        forget: batch normalization stores the statistics of this batch, not a moving average.
        chosen: bool `[n]`, the examples whose statistics batch normalization computes; None: all.
        whole_losses: losses are not divided by the number of replicas.
        reading: what layers of tokens read; None: what they are given.
        assigned: notes the variables that stateless calls assign to; None: notes none.
    """

    twice_differentiable = False
    batch_statistics: bool | None = None
    forget = False
    chosen: tf.Tensor | None = None
    whole_losses = False
    reading: Reading | None = None
    assigned: list[keras.Variable] | None = None


_WANTED = _Wanted()
# Where Keras chooses kernels of cuDNN; a function of that name hides it.
_RECURRENT: Any = importlib.import_module("keras.src.backend.tensorflow.rnn")
# Where Keras opens the scopes of a graph.
_CORE: Any = importlib.import_module("keras.src.backend.tensorflow.core")
_INSTALLATION = threading.Lock()
_installed = False


@contextlib.contextmanager
def twice_differentiable() -> Iterator[None]:
    """Makes the second derivatives of layers correct if they are traced inside.

    `tf.nn.moments`, which Keras calls for batch, layer and group normalization, stops the gradient
    of the mean inside the variance. The first derivative does not need it, because the deviations
    from the mean add up to zero. The second derivative does: without it, Hessian-vector products
    are wrong by one part in a thousand or more.
    """
    with _asked_for(twice_differentiable=True):
        yield


@contextlib.contextmanager
def batch_statistics(used: bool) -> Iterator[None]:
    """Makes batch normalization use batch (or stored) statistics, whatever `training` is.

    Keras ties this choice to `training`, which also switches dropout. Adaptation and prediction
    need separate choices. A frozen layer always uses the stored statistics.
    """
    with _asked_for(batch_statistics=used):
        yield


@contextlib.contextmanager
def statistics_of_one_batch() -> Iterator[None]:
    """Makes batch normalization store the statistics of the batch that it sees.

    Keras stores a moving average with the layer's momentum, and has no option to turn it off.
    """
    with _asked_for(batch_statistics=True, forget=True):
        yield


@contextlib.contextmanager
def statistics_of_some(chosen: tf.Tensor | None) -> Iterator[None]:
    """Makes batch normalization compute the statistics of the chosen examples alone.

    Args:
        chosen: bool `[n]`; None: all.
    """
    with _asked_for(chosen=chosen):
        yield


@contextlib.contextmanager
def losses_of_one_device() -> Iterator[None]:
    """Makes losses under a strategy what they are on one device.

    Keras divides a mean by the number of replicas, because it adds up the losses of all. But a task
    is on one replica alone: its loss, and what it is adapted by, must not depend on the others.
    """
    with _asked_for(whole_losses=True):
        yield


@contextlib.contextmanager
def tokens_read(reading: Reading) -> Iterator[None]:
    """Makes embeddings and encodings read what `reading` returns of the tokens they are given.

    Such a layer can be anywhere in a model, behind other layers and in models inside it, and Keras
    has no way to ask what it reads.
    """
    with _asked_for(reading=reading):
        yield


@contextlib.contextmanager
def assignments() -> Iterator[list[keras.Variable]]:
    """Gives the variables that stateless calls inside assign to.

    Keras returns the new values of non-trainable variables, but not whether they are new, and
    none of trainable ones.
    """
    assigned: list[keras.Variable] = []
    with _asked_for(assigned=assigned):
        yield assigned


@contextlib.contextmanager
def _asked_for(**wanted: Any) -> Iterator[None]:
    _install()
    before = {name: getattr(_WANTED, name) for name in wanted}
    _WANTED.__dict__.update(wanted)
    try:
        yield
    finally:
        _WANTED.__dict__.update(before)


def _install() -> None:
    global _installed
    with _INSTALLATION:
        if not _installed:
            tf.nn.moments = _replaced_moments(tf.nn.moments)
            layer = keras.layers.BatchNormalization
            layer.call = _replaced_call(layer.call)
            for reader in (keras.layers.Embedding, keras.layers.CategoryEncoding):
                reader.call = _replaced_lookup(reader.call)
            search = _RECURRENT._is_gpu_available  # noqa: SLF001 - it has no public name
            _RECURRENT._is_gpu_available = _replaced_search(search)  # noqa: SLF001
            _CORE.name_scope.__init__ = replaced_scope(_CORE.name_scope.__init__)
            name = "scale_loss_for_distribution"
            setattr(losses, name, _replaced_scaling(getattr(losses, name)))
            scope = keras.StatelessScope
            scope.add_update = _replaced_update(scope.add_update)
            _installed = True


def _replaced_scaling(original: Any) -> Any:
    @functools.wraps(original)
    def scaled(value: tf.Tensor) -> tf.Tensor:
        return value if _WANTED.whole_losses else original(value)

    return scaled


def _replaced_moments(original: Any) -> Any:
    @functools.wraps(original)
    def moments(
        x: tf.Tensor,
        axes: list[int],
        shift: tf.Tensor | None = None,
        keepdims: bool = False,
        name: str | None = None,
    ) -> tuple[tf.Tensor, tf.Tensor]:
        if not _WANTED.twice_differentiable:
            return original(x, axes, shift, keepdims, name)
        mean = tf.reduce_mean(x, axes, keepdims=True)
        variance = tf.reduce_mean(tf.square(x - mean), axes, keepdims=keepdims)
        return (mean if keepdims else tf.squeeze(mean, axes)), variance

    return moments


def _replaced_search(original: Any) -> Any:
    # The kernels of cuDNN for LSTM and GRU have no second derivative, Keras's own loops have one.
    @functools.wraps(original)
    def is_gpu_available() -> bool:
        return not _WANTED.twice_differentiable and bool(original())

    return is_gpu_available


def _replaced_update(original: Any) -> Any:
    @functools.wraps(original)
    def add_update(self: keras.StatelessScope, update: tuple[keras.Variable, tf.Tensor]) -> None:
        if _WANTED.assigned is not None:
            _WANTED.assigned.append(update[0])
        original(self, update)

    return add_update


def _replaced_lookup(original: Any) -> Any:
    @functools.wraps(original)
    def call(self: keras.Layer, inputs: tf.Tensor, *others: Any, **named: Any) -> tf.Tensor:
        reading = _WANTED.reading
        inputs = inputs if reading is None else reading(self, inputs)
        return original(self, inputs, *others, **named)

    return call


def _replaced_call(original: Any) -> Any:
    @functools.wraps(original)
    def call(
        self: keras.layers.BatchNormalization,
        inputs: tf.Tensor,
        training: bool | None = None,
        mask: tf.Tensor | None = None,
    ) -> tf.Tensor:
        if _WANTED.batch_statistics is not None:
            training = _WANTED.batch_statistics
        layer = self
        if _WANTED.forget or _WANTED.chosen is not None:
            layer = _Layer(self, _WANTED.forget, _WANTED.chosen)
        if mask is not None and _WANTED.chosen is not None:
            mask = _of_chosen(_WANTED.chosen, mask) & mask
        return original(layer, inputs, training=training, mask=mask)

    return call


class _Layer:
    """A batch normalization layer with another momentum, or with statistics of some examples.

    Args:
        layer: the layer.
        forget: whether its moving averages forget all earlier batches.
        chosen: bool `[n]`, the examples whose statistics it computes; None: all.
    """

    def __init__(
        self, layer: keras.layers.BatchNormalization, forget: bool, chosen: tf.Tensor | None
    ) -> None:
        self._layer = layer
        self._chosen = chosen
        self.momentum = 0.0 if forget else layer.momentum

    def __getattr__(self, name: str) -> Any:
        return getattr(self._layer, name)

    def _moments(self, inputs: tf.Tensor, mask: tf.Tensor | None) -> tuple[tf.Tensor, tf.Tensor]:
        if mask is not None or self._chosen is None:
            return self._layer._moments(inputs, mask)  # noqa: SLF001 - it is this layer
        axes = self._layer._reduction_axes  # noqa: SLF001
        # Keras adds 1e-7 to the number of masked examples; the mean of the others must be exact.
        chosen = _of_chosen(self._chosen, inputs)
        size = tf.size(inputs, tf.int32) // tf.shape(inputs)[0] // inputs.shape[self._layer.axis]
        number = tf.reduce_sum(tf.cast(self._chosen, tf.int32)) * size
        number = tf.cast(tf.maximum(number, 1), inputs.dtype)
        mean = tf.reduce_sum(tf.where(chosen, inputs, 0), axes, keepdims=True) / number
        squares = tf.where(chosen, tf.square(inputs - mean), 0)
        return tf.squeeze(mean, axes), tf.reduce_sum(squares, axes) / number


def _of_chosen(chosen: tf.Tensor, values: tf.Tensor) -> tf.Tensor:
    """Returns `chosen` `[n]` in the rank of `values` `[n, ...]`."""
    if None not in (values.shape[0], chosen.shape[0]) and values.shape[0] != chosen.shape[0]:
        raise UsageError(
            f"Expected batch normalization of inputs with the {chosen.shape[0]} examples on their "
            f"first axis, because the examples have weights, got {values.shape[0]}; leave the "
            "weights out, or normalize before examples are split or joined."
        )
    return tf.reshape(chosen, [-1] + [1] * (values.shape.rank - 1))
