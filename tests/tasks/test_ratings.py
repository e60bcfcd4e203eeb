"""Collaborative filtering: the protocol, and that nothing leaks."""

import dataclasses
import functools
import pathlib

import numpy as np
import pytest
import tensorflow as tf

from amaml_tf import tasks
from amaml_tf.tasks.ratings.item_features import item_features
from amaml_tf.tasks.ratings.ratings_family import Ratings
from amaml_tf.tasks.ratings.ratings_file import read_ratings_csv

NUM_USERS, NUM_ITEMS, K, Q = 60, 30, 3, 4


@functools.cache
def ratings() -> Ratings:
    """Random ratings: user u has rated between 5 and 29 of 30 items, in a random order."""
    rng = np.random.default_rng(0)
    users, items = [], []
    for user in range(NUM_USERS):
        count = rng.integers(5, NUM_ITEMS)
        users += [f"u{user}"] * count
        items += [f"i{item}" for item in rng.permutation(NUM_ITEMS)[:count]]
    size = len(users)
    return Ratings(
        np.array(users), np.array(items), rng.integers(1, 6, size) * 1.0, rng.permutation(size)
    )


def build(data: Ratings, **arguments) -> tasks.RatingsFamily:
    defaults = {"num_support": K, "num_query": Q, "num_factors": 2, "dtype": "float64"}
    return tasks.RatingsFamily(data, **{**defaults, **arguments})


def split_of_users() -> dict[str, set[str]]:
    from amaml_tf.tasks.class_split import split_by_seed

    names = np.unique(ratings().users)
    return {split: set(names[labels]) for split, labels in split_by_seed(len(names)).items()}


def query_positions(split: str) -> np.ndarray:
    """Rows of `ratings()` that are query ratings of users of `split`, and all later ones."""
    data, chosen = ratings(), []
    for user in split_of_users()[split]:
        rows = np.flatnonzero(data.users == user)
        chosen += rows[np.argsort(data.times[rows])][K:].tolist()
    return np.array(chosen)


def all_episodes(family, split):
    return [
        tf.nest.map_structure(np.asarray, family.task_episode(split, index))
        for index in range(family.num_tasks(split))
    ]


def assert_equal(first, second):
    tf.nest.map_structure(np.testing.assert_array_equal, first, second)


def test_a_task_is_a_users_ratings_in_time():
    data, family = ratings(), build(ratings())
    users = split_of_users()["test"]
    expected = []
    for user in users:
        rows = np.flatnonzero(data.users == user)
        if len(rows) >= K + Q:
            expected.append(tuple(data.values[rows[np.argsort(data.times[rows])]][: K + Q]))
    found = []
    for (_, support_y), (_, query_y) in all_episodes(family, "test"):
        standard = np.concatenate([support_y, query_y]).ravel()
        found.append(tuple(np.rint(standard * family.target_scale + family.target_mean)))
    assert 5 < len(expected) < len(users)
    assert sorted(found) == sorted(expected)


def test_users_of_the_splits_are_disjoint():
    split = split_of_users()
    assert [len(split[name]) for name in ("train", "validation", "test")] == [38, 10, 12]
    assert len(set.union(*split.values())) == NUM_USERS


def test_targets_are_standardised_by_the_training_users():
    data, family = ratings(), build(ratings())
    values = data.values[np.isin(data.users, list(split_of_users()["train"]))]
    assert family.target_mean == values.mean()
    assert family.target_scale == values.std()


@pytest.mark.parametrize("split", ["validation", "test"])
def test_changed_query_ratings_change_nothing_but_themselves(split):
    data = ratings()
    values = data.values.copy()
    values[query_positions(split)] += 100
    before, after = build(data), build(dataclasses.replace(data, values=values))
    np.testing.assert_array_equal(before._features, after._features)
    assert (before.target_mean, before.target_scale) == (after.target_mean, after.target_scale)
    streams = [
        list(family.episodes("train", batch_size=4, num_batches=20).as_numpy_iterator())
        for family in (before, after)
    ]
    assert_equal(*streams)
    for old, new in zip(all_episodes(before, split), all_episodes(after, split), strict=True):
        assert_equal(old[0], new[0])
        assert_equal(old[1][0], new[1][0])
        np.testing.assert_allclose(new[1][1] - old[1][1], 100 / before.target_scale)


def test_absent_query_ratings_change_neither_features_nor_training():
    data = ratings()
    keep = np.ones(len(data.values), bool)
    keep[query_positions("test")] = False
    reduced = Ratings(*(getattr(data, field.name)[keep] for field in dataclasses.fields(data)))
    # So few ratings are left that test tasks are shorter.
    before = build(data)
    after = build(reduced, num_test_support=1, num_test_query=1)
    np.testing.assert_array_equal(before._features, after._features)
    assert_equal(all_episodes(before, "train"), all_episodes(after, "train"))


def test_the_order_of_the_rows_does_not_matter_if_times_differ():
    data = ratings()
    order = np.random.default_rng(1).permutation(len(data.values))
    shuffled = Ratings(*(getattr(data, field.name)[order] for field in dataclasses.fields(data)))
    before, after = all_episodes(build(data), "test"), all_episodes(build(shuffled), "test")
    for old, new in zip(before, after, strict=True):
        tf.nest.map_structure(
            functools.partial(np.testing.assert_allclose, rtol=0, atol=1e-9), old, new
        )


def test_items_that_no_training_user_rated_have_zero_features():
    data = ratings()
    user = sorted(split_of_users()["test"])[0]
    rows = np.flatnonzero(data.users == user)
    first = rows[np.argmin(data.times[rows])]
    items = data.items.astype("U9").copy()
    items[first] = "unheard"
    family = build(dataclasses.replace(data, items=items))
    zero = [np.all(support_x[0] == 0) for (support_x, _), _ in all_episodes(family, "test")]
    assert sum(zero) == 1


def test_item_features_are_those_of_a_dense_decomposition():
    rng = np.random.default_rng(2)
    matrix = rng.normal(size=(40, 25)) * rng.uniform(size=25) ** 2
    rated = rng.uniform(size=matrix.shape) < 0.6
    users, items = np.nonzero(rated)
    values = matrix[rated] - matrix[rated].mean()
    counts = np.bincount(items)
    means = np.bincount(items, values) / (counts + 5)
    residuals = np.zeros(matrix.shape)
    residuals[rated] = values - means[items]
    residuals -= rated * (residuals.sum(1) / rated.sum(1))[:, np.newaxis]
    vectors = np.linalg.svd(residuals)[2][:3].T
    vectors *= np.sign(vectors[np.abs(vectors).argmax(axis=0), range(3)])
    expected = np.column_stack([means, np.log1p(counts), vectors])
    expected = (expected - expected.mean(axis=0)) / expected.std(axis=0)
    features = item_features(users, items, values, num_factors=3)
    # Subspace iteration leaves errors of the order of the gaps between singular values.
    np.testing.assert_allclose(features, expected, atol=2e-2)


def test_query_error_is_below_that_of_the_mean_where_there_is_something_to_learn():
    """On ratings of rank one, item factors tell users' ratings: features carry the signal."""
    rng = np.random.default_rng(3)
    users, items = (axis.ravel() for axis in np.meshgrid(range(80), range(20), indexing="ij"))
    values = (rng.normal(size=80)[:, np.newaxis] * rng.normal(size=20)).ravel()
    data = Ratings(users, items, values, rng.permutation(1600))
    family = build(data, num_support=6, num_query=6, num_factors=1)
    errors, spreads = [], []
    for (support_x, support_y), (query_x, query_y) in all_episodes(family, "test"):
        weights = np.linalg.lstsq(support_x[:, 2:], support_y, rcond=None)[0]
        errors.append(np.mean((query_x[:, 2:] @ weights - query_y) ** 2))
        spreads.append(np.mean(query_y**2))
    assert np.mean(errors) < 0.05 * np.mean(spreads)


def write(tmp_path: pathlib.Path, text: str) -> str:
    (tmp_path / "ratings.csv").write_text(text, encoding="utf-8")
    return str(tmp_path / "ratings.csv")


def test_csv_with_names_and_times(tmp_path):
    data = read_ratings_csv(write(tmp_path, "user,item,rating,time\nä,x,4.5,20\nb,y,-1,10\n\n"))
    assert data.users.tolist() == ["ä", "b"]
    assert data.items.tolist() == ["x", "y"]
    assert data.values.tolist() == [4.5, -1]
    assert data.times.tolist() == [20, 10]


def test_csv_without_names_and_times_keeps_the_order_of_the_lines(tmp_path):
    data = ratings()
    order = np.argsort(data.times)
    lines = [f"{data.users[i]},{data.items[i]},{data.values[i]}" for i in order]
    family = tasks.REGISTRY["ratings_csv"](
        data_dir=write(tmp_path, "\n".join(lines)),
        num_support=K,
        num_query=Q,
        num_factors=2,
        dtype="float64",
    )
    expected = all_episodes(build(data), "test")
    for old, new in zip(expected, all_episodes(family, "test"), strict=True):
        tf.nest.map_structure(
            functools.partial(np.testing.assert_allclose, rtol=0, atol=1e-9), old, new
        )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", r"Expected lines user,item,rating\[,time\], got none"),
        ("a,b,3\na,c,good\n", "with numbers for rating and time, got 'a,c,good'"),
        ("a,b,3\na,c,4,5\n", "got 'a,c,4,5'"),
        ("a,b\n", "or first a header .*got 'a,b' in .*, line 1; correct"),
        ("a,b,nan\na,b,inf", "got 'a,b,nan' in .*, line 1"),
        ("a,b,4\na,b,inf", "got 'a,b,inf' in .*, line 2"),
    ],
)
def test_wrong_csv(tmp_path, text, message):
    with pytest.raises(ValueError, match=message):
        read_ratings_csv(write(tmp_path, text))


def test_missing_csv(tmp_path):
    with pytest.raises(ValueError, match="Expected a CSV file of ratings, got no file at"):
        read_ratings_csv(str(tmp_path / "none.csv"))
    with pytest.raises(ValueError, match="Expected data_dir, a CSV file of ratings, got none"):
        tasks.REGISTRY["ratings_csv"](data_dir=None)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_support": 40}, r"Expected at most \d+ support and query ratings .*got 40 \+ 4"),
        ({"num_factors": 31}, "Expected num_factors from 1 to 30, .*got 31"),
    ],
)
def test_more_than_there_is(arguments, message):
    with pytest.raises(ValueError, match=message):
        build(ratings(), **arguments)


def test_unusable_ratings():
    data = ratings()
    twice = Ratings(
        *(np.concatenate([getattr(data, f.name)] * 2) for f in dataclasses.fields(data))
    )
    with pytest.raises(ValueError, match="Expected one rating of a user for an item, got"):
        build(twice)
    with pytest.raises(ValueError, match="Expected ratings of the training users that differ"):
        build(dataclasses.replace(data, values=np.ones_like(data.values)))


def test_movielens_through_tensorflow_datasets(tmp_path):
    import tensorflow_datasets as tfds
    from tensorflow_datasets.core import SequentialWriter

    builder = tfds.builder("movielens/100k-ratings", data_dir=tmp_path, try_gcs=False)
    pathlib.Path(builder.data_dir).mkdir(parents=True)
    writer = SequentialWriter(builder.info, max_examples_per_shard=100_000)
    writer.initialize_splits(["train"])
    unused = {
        "movie_title": "",
        "movie_genres": [0],
        "user_gender": True,
        "raw_user_age": 20.0,
        "bucketized_user_age": 18.0,
        "user_occupation_label": 0,
        "user_occupation_text": "",
        "user_zip_code": "",
    }
    users, items = (
        [int(name[1:]) for name in names] for names in (ratings().users, ratings().items)
    )
    data = dataclasses.replace(ratings(), users=np.array(users), items=np.array(items))
    examples = [
        {
            "user_id": str(user),
            "movie_id": str(item),
            "user_rating": value,
            "timestamp": time,
            **unused,
        }
        for user, item, value, time in zip(
            data.users, data.items, data.values, data.times, strict=True
        )
    ]
    writer.add_examples({"train": examples})
    writer.close_all()
    family = tasks.REGISTRY["movielens_100k"](
        data_dir=str(tmp_path), num_support=K, num_query=Q, num_factors=2, dtype="float64"
    )
    assert_equal(all_episodes(build(data), "test"), all_episodes(family, "test"))


def test_missing_movielens(tmp_path):
    with pytest.raises(ValueError, match=r"Expected data set 'movielens/1m-ratings' at .*nothing"):
        tasks.REGISTRY["movielens_1m"](data_dir=str(tmp_path))
