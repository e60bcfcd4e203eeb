"""Families of the user's own tasks."""

from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from amaml_tf.tasks import from_dataset, from_function

X, Y = np.ones((4, 2)), np.ones((4, 3))
LABELS = np.array([0, 1, 1, 0])


def first_batch(family, split="train"):
    return next(family.episodes(split, batch_size=2).as_numpy_iterator())


def test_the_function_sees_the_split_and_independent_generators():
    def episode(split, rng):
        x = np.full((1, 1), rng.uniform())
        return (x, x), (x, np.full((1, 1), ("train", "validation", "test").index(split)))

    family = from_function(episode)
    drawn = []
    for number, split in enumerate(family.splits):
        (support_x, _), (_, query_y) = first_batch(family, split)
        assert np.all(query_y == number)
        drawn += support_x.ravel().tolist()
    assert len(set(drawn)) == 6


def test_sizes_are_read_off_the_first_episodes():
    def episode(split, rng):
        size = 2 if split == "train" else 4
        return (X[:size], Y[:size]), (X[:3], Y[:3])

    family = from_function(episode)
    assert family.input_shape == (2,)
    assert family.num_outputs == 3
    assert family.sizes("train") == (2, 3)
    assert family.sizes("test") == (4, 3)
    assert first_batch(family, "test")[0][1].shape == (2, 4, 3)


def test_classification_gives_integer_labels():
    family = from_function(
        lambda split, rng: ((X, LABELS), (X, LABELS)), kind="classification", num_outputs=2
    )
    (_, support_y), _ = first_batch(family)
    assert support_y.dtype == np.int32
    np.testing.assert_array_equal(support_y[0], LABELS)


def test_arrays_are_cast():
    def episode(split, rng):
        return [X.tolist(), Y], [X, Y.astype(int)]  # lists will do, too

    ((support_x, support_y), (_, query_y)) = first_batch(from_function(episode, dtype="float64"))
    assert support_x.dtype == support_y.dtype == query_y.dtype == np.float64


def test_a_generator_that_ends_ends_the_stream():
    def episodes(split, rng):
        for _ in range(5):
            yield (X, Y), (X, Y)

    assert len(list(from_function(episodes).episodes("train", batch_size=2))) == 2


def test_a_data_set_is_repeated_in_its_own_order():
    x = np.arange(3.0)[:, np.newaxis, np.newaxis]
    family = from_dataset(tf.data.Dataset.from_tensor_slices(((x, x), (x, x))))
    assert family.splits == ("train",)
    stream = family.episodes("train", batch_size=2, start=3, num_batches=2)
    drawn = [batch[0][0].numpy().ravel().tolist() for batch in stream]
    assert drawn == [[0, 1], [2, 0]]


@pytest.mark.parametrize(
    ("episode", "message"),
    [
        (
            (X, Y),
            r"query_y\)\) in split 'train', got \(an array of shape \(4, 2\), an array .*; give",
        ),
        (((1.0, 2.0), (3.0, 4.0)), r"Expected arrays of examples .*got shape \(\); put an axis"),
        (None, "Expected episodes .* got None; give"),
        (((X, Y[:, 0]), (X, Y[:, 0])), r"targets of shape \[examples, outputs\], got \(4,\)"),
        (((X, Y[:3]), (X, Y)), r"Expected support_y of shape \(4, 3\) .*got \(3, 3\)"),
        (((X, Y), (X[:, :1], Y)), r"Expected query_x of shape \(4, 2\) .*got \(4, 1\)"),
    ],
)
def test_episodes_of_another_form(episode, message):
    with pytest.raises(ValueError, match=message):
        from_function(lambda split, rng: episode)


def test_labels_that_are_not_below_the_number_of_classes():
    with pytest.raises(ValueError, match=r"Expected labels from 0 to 1 .*got 1 to 2; number the"):
        from_function(
            lambda split, rng: ((X, LABELS + 1), (X, LABELS)),
            kind="classification",
            num_outputs=2,
        )


def test_classification_needs_the_number_of_classes():
    with pytest.raises(ValueError, match="Expected num_outputs, the number of classes"):
        from_function(lambda split, rng: ((X, LABELS), (X, LABELS)), kind="classification")


def test_unknown_kind():
    with pytest.raises(ValueError, match=r"Expected kind to be one of .*got 'ranking'"):
        from_function(lambda split, rng: ((X, Y), (X, Y)), kind="ranking")


def test_splits_without_training():
    with pytest.raises(ValueError, match=r"Expected a split 'train'.*got \('test',\)"):
        from_function(lambda split, rng: ((X, Y), (X, Y)), splits=("test",))


def test_unknown_splits():
    with pytest.raises(ValueError, match=r"Expected splits of \('train', .*got 'dev'; rename it"):
        from_function(lambda split, rng: ((X, Y), (X, Y)), splits=("train", "dev"))


def test_a_generator_without_episodes():
    def episodes(split, rng):
        yield from ()

    with pytest.raises(ValueError, match="Expected episodes in split 'train', got none"):
        from_function(episodes)


def test_a_later_episode_of_another_shape_is_named():
    def episodes(split, rng):
        yield (X, Y), (X, Y)
        yield (X[:3], Y[:3]), (X, Y)

    family = from_function(episodes)
    with pytest.raises(tf.errors.InvalidArgumentError, match=r"Expected support_x of shape \(4, 2"):
        first_batch(family)


def test_data_sets_of_another_form():
    pairs = tf.data.Dataset.from_tensor_slices((X, Y))
    with pytest.raises(
        ValueError,
        match=r"Expected episodes of one task .*'train', got \(an array of shape \(2,\), an",
    ):
        from_dataset(pairs)
    spec = tf.TensorSpec(None)
    unknown = tf.data.Dataset.from_generator(list, output_signature=((spec, spec), (spec, spec)))
    with pytest.raises(
        ValueError, match=r"Expected arrays with a known number of axes .*ensure_sh"
    ):
        from_dataset(unknown)


@pytest.mark.parametrize("how", ["function", "dataset"])
@pytest.mark.parametrize(
    ("labels", "weight", "sentence"),
    [
        ([0, 1, 2, 0], None, "Expected labels from 0 to 1 in the train split, got"),
        ([0, 1, -1, 0], None, "Expected labels from 0 to 1 in the train split, got"),
        ([0, 1, -1, 9], [1, 2, 0, 0], None),
    ],
    ids=["too large", "negative", "where the weight is 0"],
)
def test_labels_are_numbers_of_classes(how, labels, weight, sentence):
    examples = (X, np.array(labels)) if weight is None else (X, np.array(labels), np.array(weight))
    options: dict[str, Any] = {"kind": "classification", "num_outputs": 2}

    def batch():
        if how == "function":
            family = from_function(lambda split, rng: (examples, examples), **options)
        else:
            family = from_dataset(tf.data.Dataset.from_tensors((examples, examples)), **options)
        return first_batch(family)

    if sentence is None:
        np.testing.assert_array_equal(batch()[0][2][0], weight)
    else:
        with pytest.raises((ValueError, tf.errors.InvalidArgumentError), match=sentence):
            batch()


def test_labels_of_a_data_set_that_are_no_whole_numbers_are_refused():
    examples = X, np.array([0.0, 1.0, 0.5, 0.0])
    data = tf.data.Dataset.from_tensors((examples, examples))
    family = from_dataset(data, kind="classification", num_outputs=2)
    with pytest.raises(tf.errors.InvalidArgumentError, match="Expected labels from 0 to 1"):
        first_batch(family)
