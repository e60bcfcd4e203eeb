"""Episodes of a user's own that differ in size: padded, weighted, or refused."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import amaml_tf as amaml
from amaml_tf.tasks import from_dataset, from_function

SIZES = [3, 1, 5, 2]


def examples(size, value=1.0):
    return np.full((size, 2), value), np.full((size, 1), value)


def sized(support=SIZES, query=(4,)):
    """Episodes whose sets have these sizes, in turns, and whose arrays hold their size."""

    def episodes(split, rng):
        while True:
            for number in range(4):
                sizes = support[number % len(support)], query[number % len(query)]
                yield tuple(examples(size, size) for size in sizes)

    return episodes


def first_batch(family, batch_size=4):
    return next(family.episodes("train", batch_size=batch_size).as_numpy_iterator())


def test_sets_are_padded_to_the_largest_size_and_weighted():
    family = from_function(sized(), max_support=6)
    assert family.sizes("train") == (6, 4)
    stream = family.episodes("train", batch_size=4)
    assert all(spec.shape.is_fully_defined() for spec in tf.nest.flatten(stream.element_spec))
    (x, y, weight), (_, _, query_weight) = first_batch(family)
    expected = (np.arange(6) < np.array(SIZES)[:, np.newaxis]).astype("float32")
    np.testing.assert_array_equal(weight, expected)
    np.testing.assert_array_equal(
        x, expected[..., np.newaxis] * np.reshape(SIZES, (4, 1, 1)) * [1, 1]
    )
    np.testing.assert_array_equal(y, x[..., :1])
    np.testing.assert_array_equal(query_weight, np.ones((4, 4)))
    assert weight.dtype == np.float32


def test_without_a_largest_size_a_batch_has_that_of_a_few_buckets():
    family = from_function(sized([3, 1, 5, 2]), max_support="batch", dtype="float64")
    stream = family.episodes("train", batch_size=2, num_batches=2).as_numpy_iterator()
    (first, _), (second, _) = stream
    assert [part.shape for part in first] == [(2, 4, 2), (2, 4, 1), (2, 4)]
    assert [part.shape for part in second] == [(2, 8, 2), (2, 8, 1), (2, 8)]
    assert second[2].tolist() == [[1] * 5 + [0] * 3, [1] * 2 + [0] * 6]
    assert second[2].dtype == np.float64
    with pytest.raises(amaml.UsageError, match="Expected a largest size of support sets, got"):
        family.sizes("train")


def test_weights_of_the_user_are_kept():
    def episode(split, rng):
        size = 2 if split == "train" else 3
        return (*examples(size), [0.5, 2.0, 0.0][:size]), examples(1)

    (_, _, weight), (_, _, query_weight) = first_batch(from_function(episode))
    np.testing.assert_array_equal(weight, [[0.5, 2]] * 4)
    np.testing.assert_array_equal(query_weight, [[1]] * 4)
    (_, _, weight), _ = first_batch(from_function(episode, max_support=3))
    np.testing.assert_array_equal(weight, [[0.5, 2, 0]] * 4)


def test_a_data_set_of_unknown_sizes_is_padded_in_buckets_and_of_known_ones_to_any_size():
    spec = tuple(tf.TensorSpec((None, width), tf.float64) for width in (2, 1))
    function = sized(query=[4, 2])
    unknown = tf.data.Dataset.from_generator(
        lambda: function("train", None), output_signature=(spec, spec)
    )
    of_own = from_function(function, max_support="batch", max_query="batch")
    found, expected = first_batch(from_dataset(unknown), 3), first_batch(of_own, 3)
    tf.nest.map_structure(np.testing.assert_array_equal, found, expected)
    known = tf.data.Dataset.from_tensors((examples(2), examples(3)))
    family = from_dataset(known, max_query=5)
    assert family.sizes("train") == (2, 5)
    _, (_, _, weight) = first_batch(family)
    assert weight.tolist() == [[1, 1, 1, 0, 0]] * 4


@pytest.mark.parametrize("make", ["function", "generator", "unknown data set", "known data set"])
def test_a_set_larger_than_the_largest_is_never_cut(make):
    spec = tuple(tf.TensorSpec((None, width), tf.float64) for width in (2, 1))
    message = (
        r"Expected at most max_support=4 examples in the support set of split .+, got .+; pass"
    )

    def read():
        if make == "function":
            family = from_function(lambda split, rng: (examples(5), examples(4)), max_support=4)
        elif make == "generator":
            family = from_function(sized(), max_support=4)
        elif make == "unknown data set":
            tasks = tf.data.Dataset.from_generator(
                lambda: sized()("train", None), output_signature=(spec, spec)
            )
            family = from_dataset(tasks, max_support=4)
        else:
            tasks = tf.data.Dataset.from_tensors((examples(5), examples(4)))
            family = from_dataset(tasks, max_support=4)
        first_batch(family)

    error = tf.errors.InvalidArgumentError if make in ("generator", "unknown data set") else None
    with pytest.raises(error or amaml.UsageError, match=message):
        read()


@pytest.mark.parametrize(
    ("episode", "arguments", "message"),
    [
        ((examples(0), examples(4)), {"max_support": 4}, r"1 or more, in the support set .*\(0, 2"),
        (((np.ones((2, 2)), np.ones((3, 1))), examples(4)), {"max_support": 4}, "as many targets"),
        ((examples(2), examples(4)), {"max_support": 0}, "Expected max_support to be 1 or more"),
        ((examples(2), examples(4)), {"max_query": "all"}, "'batch' or None, got 'all'"),
        ((examples(2), (*examples(4), np.ones(3))), {}, r"query_weight of shape \(4,\)"),
        ((examples(2), examples(4)), {"kind": {"a": "regression"}}, "kind in the structure of the"),
        ((({"a": np.ones((2, 2))}, np.ones((2, 1))),) * 2, {"pad_value": {"b": 1}}, "pad_value in"),
    ],
)
def test_episodes_that_cannot_be_padded(episode, arguments, message):
    with pytest.raises(amaml.UsageError, match=message):
        from_function(lambda split, rng: episode, **arguments)


def test_later_episodes_of_another_structure_are_named():
    def episodes(split, rng):
        yield examples(2), examples(2)
        yield ({"a": np.ones((2, 2))}, np.ones((2, 1))), examples(2)

    with pytest.raises(
        tf.errors.InvalidArgumentError, match=r"Expected support_x in the structure"
    ):
        first_batch(from_function(episodes))

    def weighted(split, rng):
        yield examples(2), examples(2)
        yield (*examples(2), np.ones(2)), examples(2)

    with pytest.raises(tf.errors.InvalidArgumentError, match="without weights, as in the first"):
        first_batch(from_function(weighted))


TOKENS = [[[4, 1, 2], [3]], [[5]], [[1, 2, 3, 4, 5], [6], [7, 8]]]


@pytest.mark.parametrize("form", [list, tf.ragged.constant])
def test_tokens_are_padded_to_the_longest_of_the_batch(form):
    def episodes(split, rng):
        for tokens in TOKENS:
            labels = np.zeros(len(tokens))
            yield (form(tokens), labels), (form(tokens[:1]), labels[:1])

    family = from_function(
        episodes,
        kind="classification",
        num_outputs=2,
        input_shape=(None,),
        input_dtype="int32",
        max_support=3,
        pad_value=-1,
    )
    assert str(family.input_shape) == "(None,)"
    (x, _, weight), (query_x, _, _) = first_batch(family, 3)
    assert x.dtype == np.int32
    assert x.shape == (3, 3, 8)
    rows = [[[i for i in row if i != -1] for row in task] for task in x.tolist()]
    assert [[row for row in task if row] for task in rows] == TOKENS
    assert weight.sum(axis=1).tolist() == [2, 1, 3]
    assert query_x.shape == (3, 1, 8)


def test_ragged_tokens_of_a_data_set():
    tokens = tf.ragged.constant(TOKENS[:1] * 2, ragged_rank=2)
    tasks = tf.data.Dataset.from_tensor_slices((tokens, np.zeros((2, 2))))
    family = from_dataset(
        tasks.map(lambda x, y: ((x, y), (x, y))), kind="classification", num_outputs=2
    )
    (x, _), _ = first_batch(family, 1)  # two examples each: no weights
    assert x.tolist() == [[[4, 1, 2, 0], [3, 0, 0, 0]]]


def two_inputs(rng, size):
    tokens = [rng.integers(1, 9, rng.integers(1, 7)).tolist() for _ in range(size)]
    age = rng.normal(size=(size, 2))
    sums = np.array([[sum(row) / 20] for row in tokens]) + age[:, :1]
    return {"tokens": tokens, "age": age}, {"sum": sums, "high": (sums[:, 0] > 1).astype(int)}


def two_inputs_family():
    def episode(split, rng):
        return two_inputs(rng, rng.integers(1, 6)), two_inputs(rng, rng.integers(1, 6))

    return from_function(
        episode,
        kind={"sum": "regression", "high": "classification"},
        num_outputs={"sum": 1, "high": 2},
        input_shape={"tokens": (None,), "age": (2,)},
        input_dtype={"tokens": "int32", "age": "float64"},
        max_support="batch",
        max_query=5,
        dtype="float64",
    )


def two_inputs_learner(family):
    layers = keras.layers
    tokens = keras.Input((None,), name="tokens", dtype="int32")
    age = keras.Input((2,), name="age", dtype="float64")
    embedded = layers.Embedding(10, 3, mask_zero=True, dtype="float64")(tokens)
    text = layers.GlobalAveragePooling1D(dtype="float64")(embedded)
    both = layers.Concatenate(dtype="float64")([text, age])
    outputs = {
        name: layers.Dense(number, name=name, dtype="float64")(both)
        for name, number in family.num_outputs.items()
    }
    learner = amaml.MetaLearner(
        keras.Model({"tokens": tokens, "age": age}, outputs), amaml.algorithms.MAML(0.1, 2)
    )
    learner.compile("sgd", loss=family.loss, metrics=family.metrics(), jit_compile="off")
    return learner


def test_a_padded_batch_of_two_inputs_and_outputs_has_the_gradients_of_its_tasks():
    family = two_inputs_family()
    learner = two_inputs_learner(family)
    padded = learner.meta_gradients(next(iter(family.episodes("train", batch_size=3)))).gradients
    alone = []
    for number in range(3):
        rng = np.random.default_rng((0, 0, number))  # as from_function makes it
        sets = two_inputs(rng, rng.integers(1, 6)), two_inputs(rng, rng.integers(1, 6))
        for x, _ in sets:
            x["tokens"] = tf.ragged.constant(x["tokens"]).to_tensor()
        episode = tf.nest.map_structure(lambda v: tf.convert_to_tensor(v)[tf.newaxis], sets)
        alone.append(learner.meta_gradients(episode).gradients)
    for found, *expected in zip(padded, *alone, strict=True):
        np.testing.assert_allclose(found, sum(expected) / 3, rtol=1e-10, atol=1e-14)
    history = learner.fit(family.episodes("train", batch_size=3, num_batches=2), verbose=0).history
    assert {"sum_rmse", "high_accuracy"} <= set(history)


def test_tuples_are_the_inputs_and_outputs_of_a_model_with_lists():
    def episode(split, rng):
        x = rng.normal(size=(4, 2))
        examples = (x, 2 * x), (x[:, :1], x[:, 1:])
        return examples, examples

    family = from_function(episode, num_outputs=(1, 1))
    assert str(family.input_shape) == "((2,), (2,))"
    inputs = [keras.Input((2,)), keras.Input((2,))]
    both = keras.layers.Concatenate()(inputs)
    model = keras.Model(inputs, [keras.layers.Dense(1)(both), keras.layers.Dense(1)(both)])
    learner = amaml.MetaLearner(model, amaml.algorithms.MAML(0.01, 1))
    learner.compile("sgd", loss=family.loss, jit_compile="off")
    batch = next(iter(family.episodes("train", batch_size=2)))
    assert np.isfinite(learner.meta_gradients(batch).loss)
