"""Collaborative filtering tasks: predict the ratings of a user from a few of them."""

import dataclasses
from typing import NamedTuple

import keras
import numpy as np
import tensorflow as tf

from amaml_tf.errors import UsageError
from amaml_tf.losses import HalfMeanSquaredError
from amaml_tf.tasks.base import Episode
from amaml_tf.tasks.class_split import split_by_seed
from amaml_tf.tasks.enumerated import EnumeratedTaskFamily
from amaml_tf.tasks.padding import weighted
from amaml_tf.tasks.ratings.item_features import item_features
from amaml_tf.tasks.sizes import Size
from amaml_tf.units import Affine, Lookup, Units


@dataclasses.dataclass(frozen=True)
class Ratings:
    """Ratings: who rated which item, how, and when.

    Attributes:
        users: identifier of each rating's user, of shape [ratings].
        items: identifier of each rating's item, of shape [ratings].
        values: the ratings, float64 of shape [ratings].
        times: time of each rating, in any unit, of shape [ratings]; ratings of equal times keep
            their order.
    """

    users: np.ndarray
    items: np.ndarray
    values: np.ndarray
    times: np.ndarray


class UserRatings(NamedTuple):
    """Standardised ratings, for comparison with other kinds of predictors.

    Attributes:
        users: number of each rating's user, int64 of shape [ratings].
        items: number of each rating's item, the same in every split, int64 of shape [ratings].
        values: the ratings, float64 of shape [ratings].
    """

    users: np.ndarray
    items: np.ndarray
    values: np.ndarray


class RatingsFamily(EnumeratedTaskFamily):
    """Tasks: predict a user's next ratings from the first ones.

    The protocol, in the order of computation:

    1. Users are divided at random by `split_seed` into 64% for training, 16% for validation and 20%
       for testing, before anything else is read.
    2. Ratings are standardised with the mean and deviation of the training users' ratings
       (`target_mean`, `target_scale`), so the RMSE of this family is the nRMSE.
    3. An item's features are computed from the training users' ratings (see `item_features`). An
       item that no training user has rated has zeros, the features of an average item.
    4. A task is a user with enough ratings. The support set is the user's first `num_support`
       ratings in time, and the query set is the next `num_query`. Inputs are the items' features.

    Sizes may be ranges `(low, high)`. A user with at least the two smallest numbers of ratings is
    then a task. The support set is as large as its range and the smallest query set allow, and then
    the query set is as large as its range allows. Nothing is drawn at random.

    Ratings of validation and test users are used only in the episodes of these users. So their
    query ratings cannot influence features, standardisation or training.

    Args:
        ratings: all ratings.
        num_support: first ratings of a training user, to learn from.
        num_query: next ratings of a training user, to predict.
        num_test_support: the same for validation and test users; None: as in training.
        num_test_query: the same for validation and test users; None: as in training.
        num_factors: number of latent factors among an item's features, after mean and popularity.
        split_seed: selects the random division of the users.
        dtype: floating-point type of inputs and targets.

    Raises:
        UsageError: a split has no user with enough ratings, or a user rated an item twice.

    Reference: Li, Wang, Narayan, Kirby, Zhe, "Meta-Learning with Adjoint Methods", AISTATS 2023,
    for the tasks; the protocol is this library's.
    """

    takes_ranges = True

    def __init__(
        self,
        ratings: Ratings,
        *,
        num_support: Size = 10,
        num_query: Size = 15,
        num_test_support: Size | None = None,
        num_test_query: Size | None = None,
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
        _require_no_repetition(users, ratings.items)
        _require_usable(ratings, in_training, num_factors)
        self.target_mean = float(ratings.values[in_training].mean())
        self.target_scale = float(ratings.values[in_training].std())
        targets = (ratings.values - self.target_mean) / self.target_scale

        rated = np.unique(ratings.items[in_training], return_inverse=True)
        self._known_items, training_items = rated
        training = users[in_training], training_items, targets[in_training]
        features = item_features(*training, num_factors)
        # The extra last row is for all unknown items.
        self._features = tf.constant(np.pad(features, ((0, 1), (0, 0))), dtype)
        rows = _row_of_items(ratings.items, self._known_items)

        items = np.unique(ratings.items, return_inverse=True)[1]
        #: All ratings of the training users.
        self.training_ratings = UserRatings(*(v[in_training] for v in (users, items, targets)))
        self._tasks: dict[str, tuple[tf.Tensor, tf.Tensor, tf.Tensor]] = {}
        self._ratings_of_tasks: dict[str, tuple[np.ndarray, np.ndarray, np.ndarray]] = {}
        in_time = np.lexsort((ratings.times, users))
        for split in self.splits:
            members = np.array(user_split[split], int)
            chosen, counts = self._ratings_of(split, members, users, in_time)
            self._ratings_of_tasks[split] = items[chosen], targets[chosen], counts
            self._tasks[split] = self._constants(rows[chosen], targets[chosen], counts)

    def _constants(
        self, rows: np.ndarray, targets: np.ndarray, counts: np.ndarray
    ) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        """Returns rows of features, targets and weights of a split's tasks, as tensors."""
        y = tf.constant(targets[..., np.newaxis], self.dtype)
        return tf.constant(rows, tf.int32), y, tf.constant(counts, self.dtype)

    def _ratings_of(
        self, split: str, members: np.ndarray, users: np.ndarray, in_time: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """Returns which ratings a split's tasks have: each user's first ones.

        Args:
            split: the split.
            members: the users of the split.
            users: the users of all ratings.
            in_time: the indices of all ratings, user by user, in the order of time.

        Returns:
            Indices of ratings and whether they count, both `[tasks, examples]`. What does not count
            fills the place of a rating that the user has not given.
        """
        support, query = self.size_ranges(split)
        counts = np.bincount(users)
        starts = np.cumsum(counts) - counts
        eligible = members[counts[members] >= support.low + query.low]
        self._require_tasks(split, eligible.size, counts[members].max(initial=0))
        num_ratings = counts[eligible, np.newaxis]
        num_support = np.minimum(support.high, num_ratings - query.low)
        in_support = np.broadcast_to(np.arange(support.high), (eligible.size, support.high))
        in_query = num_support + np.arange(query.high)
        counting = np.concatenate([in_support < num_support, in_query < num_ratings], axis=1)
        places = np.where(counting, np.concatenate([in_support, in_query], axis=1), 0)
        return in_time[starts[eligible][:, np.newaxis] + places], counting

    @property
    def units(self) -> Units:
        """Identifiers of items, and ratings as users give them."""
        identifiers = tuple(self._known_items.tolist())
        features = tuple(map(tuple, self._features[:-1].numpy().astype(float).tolist()))
        return Units(Lookup(identifiers, features), Affine(self.target_mean, self.target_scale))

    @property
    def loss(self) -> keras.losses.Loss:
        """Half the mean squared error, as in the paper's programs."""
        return HalfMeanSquaredError()

    def num_tasks(self, split: str) -> int:
        """Returns how many users of `split` have enough ratings."""
        self.require_split(split)
        return int(self._tasks[split][1].shape[0])

    def num_different_episodes(self, split: str) -> int | None:
        """Returns the number of users: each has one episode, of the first ratings."""
        return self.num_tasks(split)

    def user_ratings(self, split: str) -> tuple[UserRatings, UserRatings]:
        """Returns the support and the query ratings of all tasks of `split`.

        The number of a user is the number of their task.
        """
        self.require_split(split)
        items, values, counting = self._ratings_of_tasks[split]
        users = np.broadcast_to(np.arange(len(items))[:, np.newaxis], items.shape)
        at = [self.sizes(split)[0]]
        support, query = zip(
            *(np.split(v, at, axis=1) for v in (users, items, values, counting)), strict=True
        )
        return (
            UserRatings(*(v[support[-1]] for v in support[:-1])),
            UserRatings(*(v[query[-1]] for v in query[:-1])),
        )

    def _task_episode(self, split: str, index: tf.Tensor, seed: tf.Tensor) -> Episode:
        rows, targets, weights = (of_tasks[index] for of_tasks in self._tasks[split])
        x = tf.gather(self._features, rows)
        at, _ = self.sizes(split)
        support, query = (x[:at], targets[:at]), (x[at:], targets[at:])
        if not any(each.varies for each in self.size_ranges(split)):
            return support, query
        return weighted(support, weights[:at]), weighted(query, weights[at:])

    def _require_tasks(self, split: str, num_eligible: int, most: int) -> None:
        support, query = self.size_ranges(split)
        if num_eligible == 0:
            raise UsageError(
                f"Expected at most {most} support and query ratings together, as many as the most "
                f"active user of split {split!r} has given, got {support.low} + {query.low}; ask "
                "for fewer."
            )


def _row_of_items(items: np.ndarray, known_items: np.ndarray) -> np.ndarray:
    """Returns each item's position among the sorted known items, or their number if unknown."""
    rows = np.searchsorted(known_items, items)
    is_known = known_items[np.minimum(rows, len(known_items) - 1)] == items
    return np.where(is_known, rows, len(known_items))


def _require_no_repetition(users: np.ndarray, items: np.ndarray) -> None:
    """Raises UsageError if a user has rated an item twice."""
    item_names, numbers = np.unique(items, return_inverse=True)
    num_pairs = np.unique(users * len(item_names) + numbers).size
    if num_pairs < len(users):
        raise UsageError(
            f"Expected one rating of a user for an item, got {len(users)} ratings of {num_pairs} "
            "pairs; keep one of each."
        )


def _require_usable(ratings: Ratings, in_training: np.ndarray, num_factors: int) -> None:
    """Raises UsageError unless features and scaler can be computed from the training users."""
    values = ratings.values[in_training]
    # The deviation of different, but tiny values can be 0.
    if values.size == 0 or values.min() == values.max() or not values.std() > 0:
        raise UsageError(
            "Expected ratings of the training users that differ from one another, got "
            f"{values.size} ratings, all equal; use more data."
        )
    fewest = min(
        np.unique(ratings.users[in_training]).size, np.unique(ratings.items[in_training]).size
    )
    if not 1 <= num_factors <= fewest:
        raise UsageError(
            f"Expected num_factors from 1 to {fewest}, as many as there are training users and "
            f"items, got {num_factors}; choose one in that range."
        )
