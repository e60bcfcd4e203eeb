"""Tasks of different sizes: what is drawn, what is padded, and what the weights say."""

import numpy as np
import pytest
import tensorflow as tf

import amaml_tf as amaml
from amaml_tf import tasks


def batch_of(family, batch_size, split="train", **arguments):
    stream = family.episodes(split, batch_size=batch_size, num_batches=1, **arguments)
    return next(stream.as_numpy_iterator())


def images(num_classes=12, each=6) -> tasks.LabelledImages:
    """Images whose pixels are the number of the class (from 1) and of the image (from 1)."""
    pairs = [(label + 1, i + 1) for label in range(num_classes) for i in range(each)]
    pixels = np.array(pairs, np.uint8).reshape(-1, 1, 2, 1)
    labels = np.repeat(np.arange(num_classes), each)
    return tasks.LabelledImages(pixels, labels, [str(label) for label in range(num_classes)])


def image_family(**sizes) -> tasks.FewShotImages:
    split = {"train": range(6), "test": range(6, 12)}
    return tasks.FewShotImages(images(), split, **{"num_query": 1, **sizes})


def test_ways_and_shots_are_drawn_evenly_and_independently():
    family = image_family(num_ways=(2, 4), num_support=(1, 3), num_query=2)
    assert family.num_outputs == 4
    assert family.sizes("train") == (3, 2)
    (_, _, support), (_, _, query) = batch_of(family, 3600)
    support, query = support.reshape(-1, 4, 3), query.reshape(-1, 4, 2)
    ways, shots = support[:, :, 0].sum(axis=1), support[:, 0].sum(axis=1)
    counts = np.histogram2d(ways, shots, bins=[[2, 3, 4, 5], [1, 2, 3, 4]])[0]
    # Five standard deviations of a binomial count.
    assert np.all(np.abs(counts - 400) < 5 * np.sqrt(3600 / 9 * 8 / 9))
    # All classes of an episode have as many images; the query set has the same classes.
    np.testing.assert_array_equal(support.sum(axis=(1, 2)), ways * shots)
    np.testing.assert_array_equal(query.sum(axis=1), np.stack([ways] * 2, axis=1))


def test_what_counts_are_distinct_images_of_distinct_classes_and_the_rest_is_zero():
    family = image_family(num_ways=(2, 4), num_support=(1, 3), num_query=(1, 2))
    for x, y, weight in batch_of(family, 200):
        np.testing.assert_array_equal(x[weight == 0], 0)
        np.testing.assert_array_equal(y[weight == 0], 0)
        assert np.all(x[weight == 1] > 0)
        for pixels, labels, counts in zip(np.rint(x * 255), y, weight == 1, strict=True):
            classes = pixels[counts, 0, 0, 0].astype(int)
            pairs = set(zip(classes, labels[counts], strict=True))
            assert len(pairs) == len(set(classes)) == len(set(labels[counts]))
            assert set(labels[counts]) == set(range(len(pairs)))
            assert len({tuple(each) for each in pixels[counts].reshape(-1, 2)}) == counts.sum()


@pytest.mark.parametrize(
    "family",
    [
        lambda: image_family(num_ways=2, num_support=(2, 2)),
        lambda: tasks.SinusoidFamily(num_support=(3, 3)),
    ],
)
def test_a_range_of_one_number_is_a_number(family):
    support, _ = batch_of(family(), 2)
    assert len(support) == 2


def test_a_stream_with_ranges_is_one_without_where_it_counts():
    plain = image_family(num_ways=4, num_support=3, num_query=2)
    ranged = image_family(num_ways=(2, 4), num_support=(1, 3), num_query=(1, 2))
    pairs = zip(batch_of(plain, 5), batch_of(ranged, 5), strict=True)
    for (plain_x, plain_y), (x, y, weight) in pairs:
        np.testing.assert_array_equal(plain_x[weight == 1], x[weight == 1])
        np.testing.assert_array_equal(plain_y[weight == 1], y[weight == 1])


@pytest.mark.parametrize(
    "family",
    [
        lambda: image_family(num_ways=(2, 4), num_support=(1, 3)),
        lambda: tasks.CosMixtureFamily(num_support=(1, 9), num_query=4, num_tasks=3),
        lambda: tasks.SinusoidFamily(num_query=(1, 9)),
    ],
)
def test_the_sizes_of_an_episode_depend_on_its_number_alone(family):
    stream = family().episodes("train", batch_size=2, seed=3)
    resumed = family().episodes("train", batch_size=2, seed=3, start=5)
    expected, found = next(iter(stream.skip(5))), next(iter(resumed))
    tf.nest.map_structure(np.testing.assert_array_equal, expected, found)
    other = next(iter(family().episodes("train", batch_size=2, seed=4)))
    assert any(
        np.any(a != b) for a, b in zip(tf.nest.flatten(found), tf.nest.flatten(other), strict=True)
    )


def test_points_of_a_function_are_drawn_in_any_number():
    family = tasks.SinusoidFamily(num_support=(2, 5), num_query=3, num_test_support=4)
    (x, y, support), (_, _, query) = batch_of(family, 1000)
    sizes, counts = np.unique(support.sum(axis=1), return_counts=True)
    assert sizes.tolist() == [2, 3, 4, 5]
    assert np.all(np.abs(counts - 250) < 5 * np.sqrt(1000 / 4 * 3 / 4))
    assert np.all(query == 1)
    assert np.all((x[..., 0] == 0) == (support == 0))
    assert np.all(y[support == 0] == 0)
    assert support.dtype == np.float32
    assert len(batch_of(family, 2, "test")[0]) == 2  # these have one size


def ratings(counts) -> tasks.Ratings:
    """Ratings of as many users as there are `counts`, in the order of time."""
    users = np.repeat(np.arange(len(counts)), counts)
    items = np.concatenate([np.arange(count) for count in counts])
    values = np.random.default_rng(0).normal(size=len(users))
    return tasks.Ratings(users, items, values, np.arange(len(users)))


def test_users_with_few_ratings_are_tasks_of_small_sets():
    counts = np.tile([2, 3, 4, 5, 6, 7, 8, 9], 8)
    family = tasks.RatingsFamily(
        ratings(counts), num_support=(2, 4), num_query=(1, 3), num_factors=2
    )
    seen = set()
    for split in family.splits:
        (_, support_y, support), (_, query_y, query) = batch_of(
            family, family.num_tasks(split), split
        )
        support_size, query_size = support.sum(axis=1), query.sum(axis=1)
        seen |= set(zip(support_size, query_size, strict=True))
        of_support, of_query = family.user_ratings(split)
        order = np.array(family.task_indices(split, count=family.num_tasks(split)))
        for ratings_of, y, weight in ((of_support, support_y, support), (of_query, query_y, query)):
            for task, values, counting in zip(order, y[..., 0], weight == 1, strict=True):
                expected = ratings_of.values[ratings_of.users == task]
                np.testing.assert_allclose(values[counting], expected, rtol=1e-6)
    # Of 3, 4, 5, 6, and 7 or more ratings; the users with 2 are no tasks.
    assert seen == {(2, 1), (3, 1), (4, 1), (4, 2), (4, 3)}


@pytest.mark.parametrize(
    ("size", "message"),
    [
        ((3, 2), r"smallest and the largest number of a range, got \(3, 2\); pass something like"),
        ((1, 2, 3), r"Expected num_support to be a number, or the smallest"),
        ((0, 2), "Expected num_support to be 1 or more, got 0"),
    ],
)
def test_no_ranges(size, message):
    with pytest.raises(amaml.UsageError, match=message):
        tasks.SinusoidFamily(num_support=size)


def test_a_family_that_cannot_draw_sizes_refuses_ranges():
    class Fixed(tasks.TaskFamily):
        def _stream(self, split, seed, first):
            raise NotImplementedError

    with pytest.raises(amaml.UsageError, match="num_support to be one number for Fixed, got the"):
        Fixed(kind="regression", input_shape=(1,), num_outputs=1, num_support=(1, 2), num_query=1)


def test_more_ways_or_images_than_there_are():
    with pytest.raises(amaml.UsageError, match=r"at most 6 ways.*got 7; ask"):
        image_family(num_ways=(2, 7))
    with pytest.raises(amaml.UsageError, match=r"at most 6 support and query.*got 6 \+ 1; ask"):
        image_family(num_ways=2, num_support=(1, 6))


def test_fewer_examples_than_the_largest_size_train_and_are_evaluated():
    family = image_family(num_ways=(2, 3), num_support=(1, 2))
    model = amaml.models.multilayer_perceptron(family.input_shape, family.num_outputs, [4])
    learner = amaml.MetaLearner(model, amaml.algorithms.MAML(0.1, 1))
    learner.compile("sgd", loss=family.loss, metrics=family.metrics(), jit_compile="off")
    history = learner.fit(family.episodes("train", batch_size=2, num_batches=2), verbose=0)
    assert np.isfinite(history.history["loss"][0])
    found = amaml.evaluate(learner, family.episodes("test", batch_size=3), 6, family.metrics())
    each = np.array(found.curve[-1].values["accuracy"])
    # An accuracy is a number of query images over 2 or 3.
    assert np.all(np.isclose(each[:, None], [0, 1 / 3, 1 / 2, 2 / 3, 1]).any(axis=1))
