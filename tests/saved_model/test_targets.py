"""Which targets an export takes, and what the outputs of classifiers are, as the loss says."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import amaml_tf as amaml
from amaml_tf.errors import UsageError
from amaml_tf.saved_model import value_checks
from amaml_tf.saved_model.class_names import Classes
from amaml_tf.saved_model.interface import interface_of

LOSSES = keras.losses
SPARSE = LOSSES.SparseCategoricalCrossentropy(from_logits=True)


def interface(loss, outputs=1, spec=None, names=(), activation=None, model=None):
    if model is None:
        layer = keras.layers.Dense(outputs, activation)
        model = keras.Sequential([keras.Input((2,)), layer])
    learner = amaml.MetaLearner(model, amaml.algorithms.MAML(0.1, 1))
    learner.compile(loss=loss)
    return interface_of(
        learner.function,
        input_spec=None,
        target_spec=spec,
        units=None,
        class_names=names,
        query_statistics="support",
    )


def steps(size):
    x = keras.Input((5, 2))
    return keras.Model(x, keras.layers.Dense(size)(x))


def refusal(found, values):
    """Returns what is said of the only targets; None if they are taken."""
    checks = value_checks.of_targets(found, {"": tf.constant(values)})
    failed = [check for check in checks if not check.holds]
    return failed[0].message().numpy().decode() if failed else None


# -- labels -------------------------------------------------------------------------------------


def own_sparse(y, p):
    return LOSSES.sparse_categorical_crossentropy(y, p, from_logits=True)


def own_rounded(y, p):
    return tf.reduce_mean(tf.square(tf.cast(tf.cast(y, tf.int32), p.dtype) - p), axis=-1)


FLOATS = tf.TensorSpec([None], tf.float32)
COLUMN = tf.TensorSpec([None, 1], tf.float64)


@pytest.mark.parametrize("loss", [SPARSE, "sparse_categorical_crossentropy", own_sparse])
@pytest.mark.parametrize("spec", [FLOATS, COLUMN, tf.TensorSpec([None], tf.int64)], ids=str)
def test_labels_are_whole_numbers_below_the_number_of_classes(loss, spec):
    """Keras would make another label of 0.5, and NaN or a label of its own of 3."""
    found = interface(loss, 3, spec)

    def said(*values):
        return refusal(found, np.reshape(values, [-1, *spec.shape[1:]]).astype(spec.dtype.name))

    assert said(0, 1, 2) is None
    assert "labels from 0 to 2, got 0 to 3" in said(0, 3)
    assert "labels from 0 to 2, got -1 to 0" in said(0, -1)
    if spec.dtype.is_floating:
        assert "whole numbers, got 0.5" in said(1, 0.5)
        assert "of finite numbers, got 1" in said(1, np.nan)


def test_a_label_that_the_loss_leaves_out():
    found = interface(LOSSES.SparseCategoricalCrossentropy(ignore_class=-1), 3)
    assert refusal(found, [0, -1, 2]) is None
    assert "labels from 0 to 2" in refusal(found, [0, -2])


def test_own_losses_of_whole_numbers():
    found = interface(own_rounded, 1, FLOATS)
    assert refusal(found, [7.0, -2.0]) is None
    assert "whole numbers, got 0.25" in refusal(found, [0.25])


@pytest.mark.parametrize("loss", ["mse", "poisson", "hinge", lambda y, p: tf.reduce_mean(p**2, -1)])
def test_numbers_are_no_labels(loss):
    assert refusal(interface(loss, 1, FLOATS), [0.5, -3.0]) is None
    assert refusal(interface(loss, 1, tf.TensorSpec([None], tf.int32)), [0, 17]) is None


@pytest.mark.parametrize("spec", [None, FLOATS, COLUMN, tf.TensorSpec([None], tf.int32)], ids=str)
def test_two_classes(spec):
    """Labels 0 and 1, and what is between them."""
    found = interface("binary_crossentropy", 1, spec)
    dtype = "float32" if spec is None else spec.dtype.name
    assert refusal(found, np.array([0, 1], dtype)) is None
    assert "probabilities from 0 to 1" in refusal(found, np.array([0, 2], dtype))


@pytest.mark.parametrize("loss", ["kl_divergence", "categorical_crossentropy"])
def test_probabilities(loss):
    """Keras would clip the ones, and add up the others."""
    found = interface(loss, 2, activation="softmax")
    assert refusal(found, np.array([[0.3, 0.7]], "float32")) is None
    assert "probabilities from 0 to 1" in refusal(found, np.array([[3.0, 0.7]], "float32"))


# -- shapes -------------------------------------------------------------------------------------


class OfPairs(keras.losses.Loss):
    """What NumPy's rules make of targets [n] and outputs [n, 1]."""

    def call(self, y_true, y_pred):
        return tf.reduce_mean(tf.square(y_true - y_pred), axis=-1)


@pytest.mark.parametrize(
    ("loss", "shape", "outputs"),
    [
        ("mse", [None], 3),
        ("mse", [None, 1], 3),
        ("mae", [None], 3),
        (LOSSES.Huber(), [None, 1], 2),
        ("binary_crossentropy", [None, 1], 3),
        (lambda y, p: tf.square(y - p), [None], 3),
        (OfPairs(), [None], 1),
    ],
)
def test_targets_that_would_be_broadcast(loss, shape, outputs):
    """[n] against [n, k] is an error for all n but k, and then a wrong number."""
    with pytest.raises(UsageError, match="Expected target_spec"):
        interface(loss, outputs, tf.TensorSpec(shape, tf.float32))


def test_targets_of_steps_that_would_be_broadcast():
    with pytest.raises(UsageError, match="Expected target_spec"):
        interface("mse", spec=tf.TensorSpec([None, 5], tf.float32), model=steps(5))
    found = interface("mse", spec=tf.TensorSpec([None, 5], tf.float32), model=steps(1))
    assert found.targets[""].shape.as_list() == [None, 5]


def pinball(y, p):
    """Of three quantiles: each target is compared with three outputs of its own."""
    error = y - p
    levels = tf.constant([0.1, 0.5, 0.9])
    return tf.reduce_mean(tf.maximum(levels * error, (levels - 1) * error), axis=-1)


def gaussian(y, p):
    mean, log_scale = p[:, 0], p[:, 1]
    return log_scale + 0.5 * tf.square((tf.reshape(y, [-1]) - mean) / tf.exp(log_scale))


@pytest.mark.parametrize(
    ("loss", "shape", "outputs"),
    [
        ("mse", [None], 1),
        ("mse", [None, 1], 1),
        (pinball, [None, 1], 3),
        (gaussian, [None, 1], 2),
        (gaussian, [None], 2),
        ("circle", [None], 4),
    ],
)
def test_targets_of_their_own_outputs(loss, shape, outputs):
    found = interface(loss, outputs, tf.TensorSpec(shape, tf.float32))
    assert found.targets[""].shape.as_list() == shape
    assert refusal(found, np.zeros([2, *shape[1:]], "float32")) is None


@pytest.mark.parametrize("dtype", [tf.bool, tf.string, tf.complex64])
def test_targets_that_are_no_numbers(dtype):
    with pytest.raises(UsageError, match="Expected target_spec of targets that the loss takes"):
        interface("mse", 1, tf.TensorSpec([None, 1], dtype))


# -- names of classes ---------------------------------------------------------------------------

P = np.array([[0.2], [0.7]], "float32")
LOGIT = np.log(P / (1 - P))
TWO = np.concatenate([1 - P, P], axis=1)
THREE = np.array([[0.2, 0.5, 0.3], [0.6, 0.3, 0.1]], "float32")
NAMES = ("a", "b", "c")


@pytest.mark.parametrize(
    ("loss", "activation", "outputs", "probabilities"),
    [
        ("binary_crossentropy", "sigmoid", P, TWO),
        (LOSSES.BinaryCrossentropy(label_smoothing=0.2), None, P, TWO),
        (LOSSES.BinaryCrossentropy(from_logits=True), None, LOGIT, TWO),
        (LOSSES.BinaryFocalCrossentropy(from_logits=True), None, LOGIT, TWO),
        (LOSSES.BinaryCrossentropy(from_logits=True), "sigmoid", P, TWO),
        ("crossentropy", "sigmoid", P, TWO),
        ("categorical_crossentropy", "softmax", THREE, THREE),
        ("crossentropy", "softmax", THREE, THREE),
        (LOSSES.categorical_crossentropy, "softmax", THREE, THREE),
        (LOSSES.CategoricalCrossentropy(label_smoothing=0.1), "sigmoid", 2 * THREE, THREE),
        (LOSSES.CategoricalCrossentropy(from_logits=True), None, np.log(THREE) + 1, THREE),
        (LOSSES.CategoricalCrossentropy(from_logits=True), "softmax", THREE, THREE),
        (LOSSES.CategoricalFocalCrossentropy(from_logits=True), None, np.log(THREE), THREE),
        ("sparse_categorical_crossentropy", "softmax", THREE, THREE),
        (SPARSE, None, np.log(THREE) - 2, THREE),
    ],
)
def test_probabilities_are_what_the_loss_takes_them_for(loss, activation, outputs, probabilities):
    names = NAMES[: probabilities.shape[-1]]
    size = outputs.shape[-1]
    classes = interface(loss, size, names=names, activation=activation).classes[""]
    found, best = classes.of(tf.constant(outputs))
    np.testing.assert_allclose(found, probabilities, rtol=1e-5)
    expected = [names[place].encode() for place in probabilities.argmax(axis=-1)]
    assert best.numpy().tolist() == expected


def test_logits_far_from_zero_are_sure():
    found, best = Classes(("no", "yes"), from_logits=True).of(tf.constant([[-200.0], [200.0]]))
    np.testing.assert_array_equal(found, [[1, 0], [0, 1]])
    assert best.numpy().tolist() == [b"no", b"yes"]


def two_headed():
    x = keras.Input((2,))
    level = keras.layers.Dense(1, name="level")(x)
    kind = keras.layers.Dense(3, name="kind")(x)
    other = keras.layers.Dense(1, "sigmoid", name="other")(x)
    return keras.Model(x, [level, kind, other])


def test_several_outputs():
    losses = {"level": "mse", "kind": SPARSE, "other": "mse"}
    found = interface(losses, model=two_headed(), names=NAMES)
    assert dict(found.classes) == {"_kind": Classes(NAMES, True)}
    losses["other"] = "binary_crossentropy"
    both = {"kind": NAMES, "other": ("no", "yes")}
    found = interface(losses, model=two_headed(), names=both)
    assert found.classes["_other"] == Classes(("no", "yes"), False)
    with pytest.raises(UsageError, match="one classifier among the outputs"):
        interface(losses, model=two_headed(), names=NAMES)
    with pytest.raises(UsageError, match="names of outputs, level, kind, other, got typo"):
        interface(losses, model=two_headed(), names={"typo": NAMES})
    with pytest.raises(UsageError, match="Expected a cross-entropy of Keras for class_names"):
        interface(losses, model=two_headed(), names={"level": ("low", "high")})


@pytest.mark.parametrize(
    ("loss", "outputs", "names", "words"),
    [
        ("mse", 1, NAMES[:2], "Expected a cross-entropy of Keras"),
        (own_sparse, 3, NAMES, "Expected a cross-entropy of Keras"),
        ("hinge", 1, NAMES[:2], "Expected a cross-entropy of Keras"),
        ("binary_crossentropy", 3, NAMES, "do not exclude each other"),
        ("binary_crossentropy", 1, NAMES[:1], "Expected 2 class_names"),
        ("binary_crossentropy", 1, NAMES, "Expected 2 class_names"),
        ("categorical_crossentropy", 3, NAMES[:2], "Expected 3 class_names"),
    ],
)
def test_what_has_no_classes(loss, outputs, names, words):
    with pytest.raises(UsageError, match=words):
        interface(loss, outputs, names=names)
