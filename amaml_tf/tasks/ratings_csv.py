"""Ratings files of one's own as collaborative filtering tasks."""

import csv
import pathlib

import numpy as np

from amaml_tf.tasks.ratings import Ratings, RatingsFamily


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
