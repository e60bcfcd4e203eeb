"""MovieLens, film ratings from 1 to 5 stars, as collaborative filtering tasks."""

import numpy as np
import tensorflow as tf

from amaml_tf.errors import UsageError
from amaml_tf.tasks.base import REGISTRY
from amaml_tf.tasks.ratings.ratings_family import Ratings, RatingsFamily
from amaml_tf.tasks.sizes import Size
from amaml_tf.tasks.tfds_records import parsed_records, prepared_builder


@REGISTRY.register("movielens_1m", size="1m")
@REGISTRY.register("movielens_100k", size="100k")
class MovieLensFamily(RatingsFamily):
    """Tasks: predict a user's next film ratings from the first ones; see `RatingsFamily`.

    Args:
        size: "100k" (943 users, 1,682 films) or "1m" (6,040 users, 3,706 films).
        data_dir: folder of data sets prepared by `tensorflow_datasets`.
        download: whether to download the data set if `data_dir` does not hold it.
        num_support: first ratings of a training user, to learn from.
        num_query: next ratings of a training user, to predict.
        num_test_support: the same for validation and test users; None: as in training.
        num_test_query: the same for validation and test users; None: as in training.
        num_factors: number of latent factors among a film's features.
        split_seed: selects the random division of the users.
        dtype: floating-point type of inputs and targets.

    Raises:
        UsageError: the data set is missing, or no user of a split has enough ratings.

    Reference: Harper, Konstan, "The MovieLens Datasets: History and Context", ACM Transactions on
    Interactive Intelligent Systems 5, 2015.
    """

    def __init__(
        self,
        size: str,
        *,
        data_dir: str | None,
        download: bool = False,
        num_support: Size = 10,
        num_query: Size = 15,
        num_test_support: Size | None = None,
        num_test_query: Size | None = None,
        num_factors: int = 8,
        split_seed: int = 0,
        dtype: str = "float32",
    ) -> None:
        super().__init__(
            load_movielens(size, data_dir, download),
            num_support=num_support,
            num_query=num_query,
            num_test_support=num_test_support,
            num_test_query=num_test_query,
            num_factors=num_factors,
            split_seed=split_seed,
            dtype=dtype,
        )


def load_movielens(size: str, data_dir: str | None, download: bool = False) -> Ratings:
    """Returns the ratings of MovieLens-100K ("100k") or MovieLens-1M ("1m").

    Raises:
        UsageError: no `data_dir`, or the data set is damaged, or missing and `download` is False.
    """
    builder = prepared_builder(f"movielens/{size}-ratings", data_dir, download)
    dtypes = {
        "user_id": tf.string,
        "movie_id": tf.string,
        "user_rating": tf.float32,
        "timestamp": tf.int64,
    }
    features = {name: tf.io.FixedLenFeature((), dtype) for name, dtype in dtypes.items()}

    columns: list[tuple[np.ndarray, ...]] = []
    for file, first, records in parsed_records(builder, features):
        try:
            # The identifiers are numbers; handling them as Python strings would take seconds.
            users, films = (
                tf.strings.to_number(records[name], tf.int64).numpy()
                for name in ("user_id", "movie_id")
            )
        except tf.errors.InvalidArgumentError as error:
            raise _unusable(file, first, "identifiers that are no numbers") from error
        values = records["user_rating"].astype(np.float64)
        if not np.all((values >= 1) & (values <= 5)):
            raise _unusable(file, first, "ratings out of this range")
        columns.append((users, films, values, records["timestamp"]))
    return Ratings(*(np.concatenate(column) for column in zip(*columns, strict=True)))


def _unusable(file: str, first: int, came: str) -> UsageError:
    return UsageError(
        f"Expected ratings from 1 to 5 by numbered users of numbered films, got {came} in {file}, "
        f"from record {first} on; prepare the data set again."
    )
