"""A CSV file of ratings as collaborative filtering tasks."""

import csv
import pathlib

import numpy as np

from amaml_tf.errors import UsageError
from amaml_tf.tasks.base import REGISTRY
from amaml_tf.tasks.ratings.ratings_family import Ratings, RatingsFamily


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
        dtype: floating-point type of inputs and targets.

    Raises:
        UsageError: the file is missing or wrong, or has too few ratings for such tasks.
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
            raise UsageError(
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
    """Reads lines `user,item,rating` or `user,item,rating,time`, with or without a header line.

    Users and items may be any text. Without times, the lines are taken to be in order of time.

    Args:
        path: the file, UTF-8.

    Returns:
        The ratings in the order of the file.

    Raises:
        UsageError: the file does not exist, or a line does not have this form.
    """
    file = pathlib.Path(path).expanduser()
    if not file.is_file():
        raise UsageError(f"Expected a CSV file of ratings, got no file at {path}; check the path.")
    with file.open(newline="", encoding="utf-8") as lines:
        rows = [row for row in csv.reader(lines) if row]
    if rows and not _is_number(rows[0][2:3]):
        rows = rows[1:]
    if not rows:
        raise UsageError(f"Expected lines user,item,rating[,time], got none in {path}; add some.")
    for row in rows:
        if len(row) != len(rows[0]) or len(row) not in (3, 4) or not _is_number(row[2:]):
            raise UsageError(
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
    """Returns whether there are texts, and each is a finite number."""
    try:
        return bool(texts) and all(np.isfinite(float(text)) for text in texts)
    except ValueError:
        return False
