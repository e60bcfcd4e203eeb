"""Collaborative filtering: a task is a user, to be known by a few ratings."""

import csv
import dataclasses
import pathlib

import keras
import numpy as np
import tensorflow as tf

from amaml_tf.losses import HalfMeanSquaredError
from amaml_tf.tasks.base import Episode
from amaml_tf.tasks.class_split import split_by_seed
from amaml_tf.tasks.enumerated import EnumeratedTaskFamily
from amaml_tf.tasks.item_features import item_features


@dataclasses.dataclass(frozen=True)
class Ratings:
    """Who rated what, how, and when.

    Attributes:
        users: an identifier of the user of each rating, of shape [ratings].
        items: an identifier of its item, of shape [ratings].
        values: the ratings, float64 of shape [ratings].
        times: when they were given, in any unit, of shape [ratings]; among equal times the order of
            the ratings decides.
    """

    users: np.ndarray
    items: np.ndarray
    values: np.ndarray
    times: np.ndarray


class RatingsFamily(EnumeratedTaskFamily):
    """Predict a user's next ratings from their first ones.

    The protocol, in the order in which it is computed:

    1. Users are divided at random by `split_seed` into 64% for training, 16% for validation and 20%
       for testing, before anything else is looked at.
    2. Ratings are standardised with the mean and deviation of the training users' ratings
       (`target_mean`, `target_scale`), so the RMSE of this family is the nRMSE.
    3. An item's features are computed from the training users' ratings (see `item_features`). An
       item that no training user has rated has zeros, the features of an average item.
    4. A task is a user with enough ratings: the support set is their first `num_support` ratings in
       time, the query set the `num_query` that follow. Inputs are features of the items.

    Ratings of validation and test users enter no other way than through their own episodes, so no
    query rating can reach features, standardisation or training.

    Args:
        ratings: all ratings.
        num_support: first ratings of a training user, to learn from.
        num_query: next ratings of a training user, to predict.
        num_test_support: the same for validation and test users; None: as in training.
        num_test_query: the same for validation and test users; None: as in training.
        num_factors: latent factors among an item's features (its mean and popularity come first).
        split_seed: which random division of the users.
        dtype: floating-point type of inputs and targets.

    Raises:
        ValueError: a split has no user with so many ratings, or someone rated an item twice.

    Reference: Li, Wang, Narayan, Kirby, Zhe, "Meta-Learning with Adjoint Methods", AISTATS 2023,
    for the tasks; the protocol is this library's.
    """

    def __init__(
        self,
        ratings: Ratings,
        *,
        num_support: int = 10,
        num_query: int = 15,
        num_test_support: int | None = None,
        num_test_query: int | None = None,
        num_factors: int = 8,
        split_seed: int = 0,
        dtype: str = "float32",
    ) -> None:
        super().__init__(
            kind="regression",
            input_shape=(2 + num_factors,),
            num_outputs=1,
            num_support=num_support,
            num_query=num_query,
            num_test_support=num_test_support,
            num_test_query=num_test_query,
            dtype=dtype,
        )
        user_names, users = np.unique(ratings.users, return_inverse=True)
        user_split = split_by_seed(len(user_names), split_seed)
        in_training = np.isin(users, user_split["train"])
        _require_usable(ratings, in_training, num_factors)

        self.target_mean = float(ratings.values[in_training].mean())
        self.target_scale = float(ratings.values[in_training].std())
        targets = (ratings.values - self.target_mean) / self.target_scale

        known_items, training_items = np.unique(ratings.items[in_training], return_inverse=True)
        features = item_features(
            users[in_training], training_items, targets[in_training], num_factors
        )
        # The row after the last is that of all unknown items.
        self._features = tf.constant(np.pad(features, ((0, 1), (0, 0))), dtype)
        rows = _row_of_items(ratings.items, known_items)

        in_time = np.lexsort((ratings.times, users))
        counts = np.bincount(users)
        starts = np.cumsum(counts) - counts
        self._tasks: dict[str, tuple[tf.Tensor, tf.Tensor]] = {}
        for split in self.splits:
            length = sum(self.sizes(split))
            eligible = [user for user in user_split[split] if counts[user] >= length]
            self._require_tasks(split, len(eligible), int(counts[user_split[split]].max()))
            chosen = in_time[starts[eligible][:, np.newaxis] + np.arange(length)]
            self._tasks[split] = (
                tf.constant(rows[chosen], tf.int32),
                tf.constant(targets[chosen][..., np.newaxis], dtype),
            )

    @property
    def loss(self) -> keras.losses.Loss:
        """Half the mean squared error, as in the paper's programs."""
        return HalfMeanSquaredError()

    def num_tasks(self, split: str) -> int:
        """How many users of `split` have ratings enough."""
        self.require_split(split)
        return int(self._tasks[split][1].shape[0])

    def _task_episode(self, split: str, index: tf.Tensor, seed: tf.Tensor) -> Episode:
        rows, targets = self._tasks[split]
        x, y = tf.gather(self._features, rows[index]), targets[index]
        num_support, _ = self.sizes(split)
        return (x[:num_support], y[:num_support]), (x[num_support:], y[num_support:])

    def _require_tasks(self, split: str, num_eligible: int, most: int) -> None:
        num_support, num_query = self.sizes(split)
        if num_eligible == 0:
            raise ValueError(
                f"Expected at most {most} support and query ratings together, as many as the most "
                f"active user of split {split!r} has given, got {num_support} + {num_query}; ask "
                "for fewer."
            )


class RatingsFileFamily(RatingsFamily):
    """Collaborative filtering on a ratings file of one's own; see `RatingsFamily`.

    Args:
        data_dir: a CSV file (see `read_ratings_csv`).
        num_support: first ratings of a training user, to learn from.
        num_query: next ratings of a training user, to predict.
        num_test_support: the same for validation and test users; None: as in training.
        num_test_query: the same for validation and test users; None: as in training.
        num_factors: latent factors among an item's features.
        split_seed: which random division of the users.
        dtype: floating-point type of inputs and targets.

    Raises:
        ValueError: there is no such file, or it does not suffice for such tasks.
    """

    def __init__(
        self,
        *,
        data_dir: str | None,
        num_support: int = 10,
        num_query: int = 15,
        num_test_support: int | None = None,
        num_test_query: int | None = None,
        num_factors: int = 8,
        split_seed: int = 0,
        dtype: str = "float32",
    ) -> None:
        if data_dir is None:
            raise ValueError(
                "Expected data_dir, a CSV file of ratings, got none; pass --data_dir=FILE."
            )
        super().__init__(
            read_ratings_csv(data_dir),
            num_support=num_support,
            num_query=num_query,
            num_test_support=num_test_support,
            num_test_query=num_test_query,
            num_factors=num_factors,
            split_seed=split_seed,
            dtype=dtype,
        )


def read_ratings_csv(path: str) -> Ratings:
    """Reads lines `user,item,rating` or `user,item,rating,time`, with or without a line of names.

    Users and items may be any text. Without times the order of the lines is the order in time.

    Args:
        path: the file, UTF-8.

    Returns:
        The ratings in the order of the file.

    Raises:
        ValueError: there is no such file, or a line is not of that form.
    """
    file = pathlib.Path(path).expanduser()
    if not file.is_file():
        raise ValueError(f"Expected a CSV file of ratings, got no file at {path}; check the path.")
    with file.open(newline="", encoding="utf-8") as lines:
        rows = [row for row in csv.reader(lines) if row]
    if rows and not _is_number(rows[0][2:3]):
        rows = rows[1:]
    if not rows:
        raise ValueError(f"Expected lines user,item,rating[,time], got none in {path}; add some.")
    for row in rows:
        if len(row) != len(rows[0]) or len(row) not in (3, 4) or not _is_number(row[2:]):
            raise ValueError(
                "Expected lines user,item,rating[,time] with numbers for rating and time, got "
                f"{','.join(row)!r} in {path}; correct it."
            )
    users, items, values, *times = zip(*rows, strict=True)
    return Ratings(
        users=np.array(users),
        items=np.array(items),
        values=np.array(values, np.float64),
        times=np.array(times[0], np.float64) if times else np.zeros(len(rows)),
    )


def _is_number(texts: list[str]) -> bool:
    """Whether there are texts, and each is a finite number."""
    try:
        return bool(texts) and all(np.isfinite(float(text)) for text in texts)
    except ValueError:
        return False


def _row_of_items(items: np.ndarray, known_items: np.ndarray) -> np.ndarray:
    """Position of each item among the sorted known ones; their number for an unknown one."""
    rows = np.searchsorted(known_items, items)
    is_known = known_items[np.minimum(rows, len(known_items) - 1)] == items
    return np.where(is_known, rows, len(known_items))


def _require_usable(ratings: Ratings, in_training: np.ndarray, num_factors: int) -> None:
    """Raises ValueError unless features and scaler can be computed from the training users."""
    pairs = np.unique(np.stack([ratings.users, ratings.items]), axis=1)
    if pairs.shape[1] < len(ratings.values):
        raise ValueError(
            f"Expected one rating of a user for an item, got {len(ratings.values)} ratings of "
            f"{pairs.shape[1]} pairs; keep one of each."
        )
    values = ratings.values[in_training]
    if values.size == 0 or values.min() == values.max():
        raise ValueError(
            "Expected ratings of the training users that differ from one another, got "
            f"{values.size} ratings without difference; use more data."
        )
    fewest = min(
        np.unique(ratings.users[in_training]).size, np.unique(ratings.items[in_training]).size
    )
    if not 1 <= num_factors <= fewest:
        raise ValueError(
            f"Expected num_factors from 1 to {fewest}, as many as there are training users and "
            f"items, got {num_factors}; choose one in that range."
        )
