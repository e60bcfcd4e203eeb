"""The errors of simple predictors and matrix factorisation on a family of rating tasks.

    python -m benchmarks.rating_baselines --data_dir=DATA --output=FOLDER
        --flagfile=configs/compare/movielens_100k_10shot.cfg

The protocol is that of the meta-learners (see `RatingsFamily`). A predictor is fitted to all
ratings of the training users and to the support ratings of the users it is evaluated on, and
predicts their query ratings. Settings are chosen on the validation users; then the test users are
evaluated once. Errors are RMSEs on standardised ratings, computed per user and averaged over users.
The users are those of `amaml-compare`. Needs scikit-surprise (`pip install -e .[benchmark]`).
"""

from __future__ import annotations

import dataclasses
import itertools
import json
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from amaml_tf.commands import compare, running
from amaml_tf.commands import flags as experiment_flags
from amaml_tf.errors import UsageError
from amaml_tf.evaluation import Estimate
from amaml_tf.experiment import Experiment
from amaml_tf.files import write_atomically
from amaml_tf.provenance import provenance
from amaml_tf.tasks.ratings.ratings_family import RatingsFamily, UserRatings

# Maps the user and the item of each query rating to predictions.
Predict = Callable[[np.ndarray, np.ndarray], np.ndarray]

FACTORISATION_GRID = {
    "n_factors": (5, 20, 100, 200),
    "n_epochs": (10, 20, 40),
    "reg_all": (0.05, 0.1, 0.2),
    "lr_all": (0.005,),
}
SHRINKAGES = (0.0, 2.0, 5.0, 10.0, 20.0)
_SEEDS = (0, 1, 2)


def main(kind: type[Experiment] = Experiment) -> None:
    """Chooses on validation users, measures on test users, and writes rating_baselines.json."""
    experiment, folder = experiment_flags.read(kind), compare.output()
    family = experiment.make_family()
    if not isinstance(family, RatingsFamily):
        raise UsageError(
            f"Expected a rating task, got {experiment.task!r}; pass --task=movielens_100k or "
            "another rating task."
        )
    folder.mkdir(parents=True, exist_ok=True)
    found = [measured(name, family, experiment) for name in PREDICTORS]
    for each in found:
        print(
            f"{each['name']:22} rmse {each['rmse']['mean']:.4f} ± {each['rmse']['half_width']:.4f}"
            f"  {each['chosen']}",
            flush=True,
        )
    values = {"provenance": provenance("python -m benchmarks.rating_baselines"), "baselines": found}
    write_atomically(folder / "rating_baselines.json", json.dumps(values, indent=1) + "\n")
    print(f"Written to {folder}/rating_baselines.json.", flush=True)


def measured(name: str, family: RatingsFamily, experiment: Experiment) -> dict[str, Any]:
    """Returns the test error of a predictor with its best settings for the validation users."""
    fit, grid = PREDICTORS[name]
    candidates: list[dict[str, Any]] = []
    for settings in _points(grid):
        errors = _errors(fit, settings, family, "validation", experiment)
        candidates.append({"settings": settings, "rmse": float(errors.mean())})
    chosen = min(candidates, key=lambda each: each["rmse"])["settings"]
    errors = _errors(fit, chosen, family, "test", experiment)
    return {
        "name": name,
        "chosen": chosen,
        "rmse": dataclasses.asdict(Estimate.of(errors)),
        "num_users": errors.size,
        "candidates": candidates,
    }


def _points(grid: dict[str, tuple[Any, ...]]) -> Iterator[dict[str, Any]]:
    for values in itertools.product(*grid.values()):
        yield dict(zip(grid, values, strict=True))


def _errors(
    fit: Callable[..., Predict],
    settings: dict[str, Any],
    family: RatingsFamily,
    split: str,
    experiment: Experiment,
) -> np.ndarray:
    """Returns the RMSE of each user of `split` that the meta-learners are evaluated on."""
    support, query = family.user_ratings(split)
    count = min(experiment.num_eval_episodes, family.num_tasks(split))
    users = family.task_indices(split, seed=experiment.eval_seed, count=count)
    predict = fit(family.training_ratings, support, **settings)
    squares = (predict(query.users, query.items) - query.values) ** 2
    mean_squares = np.bincount(query.users, squares) / np.bincount(query.users)
    return np.sqrt(mean_squares[users])


# -- predictors ---------------------------------------------------------------------------------


def fit_user_mean(training: UserRatings, support: UserRatings) -> Predict:
    """Returns a predictor of a user's query ratings: the mean of their support ratings."""
    del training
    means = np.bincount(support.users, support.values) / np.bincount(support.users)
    return lambda users, items: means[users]


def fit_item_mean(training: UserRatings, support: UserRatings, shrinkage: float) -> Predict:
    """Returns a predictor: an item's shrunken training mean plus the user's shrunken offset."""
    length = 1 + max(training.items.max(), support.items.max(), 0)
    counts = np.bincount(training.items, minlength=length)
    sums = np.bincount(training.items, training.values, length)
    item_means = sums / np.maximum(counts + shrinkage, 1)
    residuals = support.values - item_means[support.items]
    offsets = np.bincount(support.users, residuals) / (np.bincount(support.users) + shrinkage)

    def predict(users: np.ndarray, items: np.ndarray) -> np.ndarray:
        known = np.append(item_means, 0.0)  # an unseen item is an average one
        return known[np.minimum(items, length)] + offsets[users]

    return predict


def fit_factorisation(training: UserRatings, support: UserRatings, **settings: float) -> Predict:
    """Returns a predictor: biased matrix factorisation, the mean of three seeds' predictions.

    The factorisation is scikit-surprise's SVD.
    """
    import surprise  # type: ignore[import-not-found,import-untyped,unused-ignore]

    # Training users have negative numbers here; the users to predict for keep their own.
    users = np.concatenate([-1 - training.users, support.users]).tolist()
    items = np.concatenate([training.items, support.items]).tolist()
    values = np.concatenate([training.values, support.values]).tolist()
    reader = surprise.Reader(rating_scale=(min(values), max(values)))
    rows = [(*row, None) for row in zip(users, items, values, strict=True)]
    data = surprise.Dataset(reader).construct_trainset(rows)
    models = [surprise.SVD(random_state=seed, **settings).fit(data) for seed in _SEEDS]

    def predict(users: np.ndarray, items: np.ndarray) -> np.ndarray:
        pairs = list(zip(users.tolist(), items.tolist(), strict=True))
        return np.mean([[m.predict(u, i).est for u, i in pairs] for m in models], axis=0)

    return predict


PREDICTORS: dict[str, tuple[Callable[..., Predict], dict[str, tuple[Any, ...]]]] = {
    "user mean": (fit_user_mean, {}),
    "item mean and offset": (fit_item_mean, {"shrinkage": SHRINKAGES}),
    "matrix factorisation": (fit_factorisation, FACTORISATION_GRID),
}


if __name__ == "__main__":
    running.run(main)
