"""A CSV file of ratings as collaborative filtering tasks."""

from amaml_tf.errors import UsageError
from amaml_tf.tasks.base import REGISTRY
from amaml_tf.tasks.ratings.ratings_family import RatingsFamily
from amaml_tf.tasks.ratings.ratings_file import read_ratings_csv
from amaml_tf.tasks.sizes import Size


@REGISTRY.register("ratings_csv")
class RatingsFileFamily(RatingsFamily):
    """Collaborative filtering on the ratings in a CSV file; see `RatingsFamily`.

    Args:
        data_dir: a CSV file (see `read_ratings_csv`).
        num_support: first ratings of a training user, to learn from.
        num_query: next ratings of a training user, to predict.
        num_test_support: the same for validation and test users; None: as in training.
        num_test_query: the same for validation and test users; None: as in training.
        num_factors: number of latent factors among an item's features.
        split_seed: selects the random division of the users.
        max_corrupt: how many rows that cannot be read may be left out.
        dtype: floating-point type of inputs and targets.

    Raises:
        UsageError: the file is missing or wrong, or has too few ratings for such tasks.
    """

    def __init__(
        self,
        *,
        data_dir: str | None,
        num_support: Size = 10,
        num_query: Size = 15,
        num_test_support: Size | None = None,
        num_test_query: Size | None = None,
        num_factors: int = 8,
        split_seed: int = 0,
        max_corrupt: int = 0,
        dtype: str = "float32",
    ) -> None:
        if data_dir is None:
            raise UsageError(
                "Expected data_dir, a CSV file of ratings, got none; pass --data_dir=FILE."
            )
        super().__init__(
            read_ratings_csv(data_dir, max_corrupt),
            num_support=num_support,
            num_query=num_query,
            num_test_support=num_test_support,
            num_test_query=num_test_query,
            num_factors=num_factors,
            split_seed=split_seed,
            dtype=dtype,
        )
