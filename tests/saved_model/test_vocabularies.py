"""Tokens that a model does not know are found wherever they are read, before anything fails."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from amaml_tf.saved_model.vocabularies import Vocabularies, known

L = keras.layers


def given(*shape, dtype="int32", name=None):
    return keras.Input(shape, dtype=dtype, name=name)


def words(size=7, **options):
    return L.Embedding(size, 2, name="words", **options)


def functional():
    x = given(3)
    return keras.Model(x, words()(x))


class Subclassed(keras.Model):
    def __init__(self):
        super().__init__()
        self.words = words()

    def call(self, x):
        return self.words(keras.ops.reshape(x, (-1, 3)))


class Positions(keras.layers.Layer):
    def __init__(self):
        super().__init__()
        self.words = words(5)

    def call(self, x):
        return x + self.words(keras.ops.arange(keras.ops.shape(x)[1]))


def inside(model):
    x = given(3)
    return keras.Model(x, L.Dense(1)(L.Flatten()(model(x))))


def read(reading, *shape, dtype="int32"):
    x = given(*shape, dtype=dtype)
    return keras.Model(x, reading(x))


def looked_up():
    lookup = L.StringLookup(vocabulary=["a", "b"])
    return read(lambda x: words(2)(lookup(x)), 2, dtype="string")  # it needs 3: one is for others


#: Models, tokens that they know and tokens that they do not know.
MODELS = {
    "functional": (functional, [[0, 3, 6]], [[0, 3, 7]]),
    "functional inside": (lambda: inside(functional()), [[0, 3, 6]], [[-1, 3, 6]]),
    "twice inside": (lambda: inside(inside(functional())), [[0, 3, 6]], [[0, 7, 6]]),
    "sequential inside": (
        lambda: inside(keras.Sequential([words(), L.Flatten()])),
        [[0, 3, 6]],
        [[0, 3, 7]],
    ),
    "subclassed inside": (lambda: inside(Subclassed()), [[0, 3, 6]], [[7, 3, 6]]),
    "behind a slice": (lambda: read(lambda x: words()(x[:, 1:]), 3), [[99, 3, 6]], [[0, 3, 7]]),
    "behind a cast": (
        lambda: read(lambda x: words()(keras.ops.cast(x, "int32")), 2, dtype="float32"),
        [[0.5, 6.5]],
        [[0.5, 7.0]],
    ),
    "behind a sum": (lambda: read(lambda x: words()(x - 1), 2), [[1, 7]], [[0, 7]]),
    "of numbers": (lambda: read(words(), 2, dtype="float32"), [[0, 6]], [[0, 2.5]]),
    "of large numbers": (lambda: read(words(), 2, dtype="int64"), [[0, 6]], [[0, 2**32]]),
    "of not a number": (lambda: read(words(), 2, dtype="float32"), [[0, 6]], [[0, np.nan]]),
    "behind a lookup": (looked_up, [["a", "c"]], [["a", "b"]]),
    "behind a hash": (
        lambda: read(lambda x: words(4)(L.Hashing(9)(x)), 4, dtype="string"),
        [["a"] * 4],
        [["a", "b", "c", "d"]],
    ),
    "of each step": (
        lambda: read(L.TimeDistributed(words()), 2, 2),
        [[[0, 1], [2, 6]]],
        [[[0, 1], [2, 7]]],
    ),
    "of positions": (
        lambda: read(Positions(), None, 2, dtype="float32"),
        np.zeros((1, 5, 2)),
        np.zeros((1, 6, 2)),
    ),
    "encoded": (
        lambda: read(L.CategoryEncoding(4, output_mode="count", name="words"), 2),
        [[0, 3]],
        [[0, 4]],
    ),
}


def of(model):
    names = ["x"] if len(model.inputs) == 1 else [each.name for each in model.inputs]

    def predict(x):
        return model(list(x.values()) if len(names) > 1 else x["x"])

    specs = {n: tf.TensorSpec(t.shape, t.dtype) for n, t in zip(names, model.inputs, strict=True)}
    return Vocabularies(model, predict, specs)


def first_failure(vocabularies, **x):
    failed = (check for check in vocabularies.checks("", x) if not check.holds)
    check = next(failed, None)
    return None if check is None else check.message().numpy().decode()


@pytest.mark.parametrize("which", MODELS)
def test_tokens_out_of_range_are_found(which):
    make, good, bad = MODELS[which]
    model = make()
    vocabularies = of(model)
    dtype = model.inputs[0].dtype
    assert first_failure(vocabularies, x=tf.constant(good, dtype)) is None
    message = first_failure(vocabularies, x=tf.constant(bad, dtype))
    assert message.startswith("Expected x with whole tokens from 0 to ")
    assert "for layer words, got " in message
    assert {each.layer for each in vocabularies.all} == {"words"}
    assert vocabularies.hidden == []


def test_one_embedding_of_two_inputs():
    left, right, other = given(1, name="left"), given(1, name="right"), given(1, name="other")
    shared = words()
    both = L.Concatenate()([shared(left), shared(right)])
    model = keras.Model([left, right, other], [both, other])
    vocabularies = of(model)
    assert sorted(each.inputs for each in vocabularies.all) == [("left",), ("right",)]
    fine, wrong = tf.constant([[6]]), tf.constant([[7]])
    assert first_failure(vocabularies, left=fine, right=fine, other=wrong) is None
    for name in ("left", "right"):
        x = {"left": fine, "right": fine, "other": fine, name: wrong}
        words_of = f"Expected {name} with whole tokens from 0 to 6 for layer words, got 7 to 7"
        assert words_of in first_failure(vocabularies, **x)


def test_what_cannot_be_seen_is_named():
    """A token that is read inside a loop is none of the graph's."""

    class Loop(keras.layers.Layer):
        def __init__(self):
            super().__init__()
            self.words = words()

        def call(self, x):
            return tf.map_fn(self.words, x, fn_output_signature=tf.float32)

        def compute_output_shape(self, shape):
            return (*shape, 2)

    vocabularies = of(read(Loop(), 2))
    assert vocabularies.hidden == ["words"]
    assert vocabularies.all == []
    # Nothing else would tell of it: a batch must not answer another token instead.
    assert vocabularies.known_if_checked(words(), tf.constant([7])) == [7]
    assert of(functional()).known_if_checked(words(), tf.constant([7])) == [6]


def test_constants_of_the_model_need_no_check():
    model = read(lambda x: x + keras.ops.sum(words()(np.array([0, 6]))), 2, dtype="float32")
    assert of(model).all == []


@pytest.mark.parametrize("dtype", ["int32", "float32", "bool"])
def test_known_tokens_stay(dtype):
    tokens = tf.cast([0, 1], dtype)
    assert np.array_equal(known(words(), tokens), tokens)
