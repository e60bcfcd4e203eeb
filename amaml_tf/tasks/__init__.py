"""Families of tasks as `tf.data` streams of episodes.

A new family is one new file and one line in `REGISTRY`.
"""

import functools
from collections.abc import Callable

from amaml_tf.tasks.base import TaskFamily
from amaml_tf.tasks.cifar_fs import CifarFewShotFamily
from amaml_tf.tasks.custom import from_dataset, from_function
from amaml_tf.tasks.few_shot_images import FewShotImages
from amaml_tf.tasks.image_folder import ImageFolderFamily
from amaml_tf.tasks.images import LabelledImages
from amaml_tf.tasks.movielens import MovieLensFamily
from amaml_tf.tasks.omniglot import OmniglotFamily
from amaml_tf.tasks.ratings import Ratings, RatingsFamily
from amaml_tf.tasks.ratings_csv import RatingsFileFamily
from amaml_tf.tasks.sinusoid import SinusoidFamily
from amaml_tf.tasks.synthetic import AlpineFamily, CosMixtureFamily
from amaml_tf.tasks.tfds_images import TfdsImagesFamily

# Families by the name that flags and flag files use; all arguments are keywords.
REGISTRY: dict[str, Callable[..., TaskFamily]] = {
    "sinusoid": SinusoidFamily,
    "cosmixture": CosMixtureFamily,
    "alpine": AlpineFamily,
    "omniglot": OmniglotFamily,
    "cifar_fs": CifarFewShotFamily,
    "tfds": TfdsImagesFamily,
    "image_folder": ImageFolderFamily,
    "movielens_100k": functools.partial(MovieLensFamily, "100k"),
    "movielens_1m": functools.partial(MovieLensFamily, "1m"),
    "ratings_csv": RatingsFileFamily,
}

__all__ = [
    "REGISTRY",
    "AlpineFamily",
    "CifarFewShotFamily",
    "CosMixtureFamily",
    "FewShotImages",
    "ImageFolderFamily",
    "LabelledImages",
    "MovieLensFamily",
    "OmniglotFamily",
    "Ratings",
    "RatingsFamily",
    "RatingsFileFamily",
    "SinusoidFamily",
    "TaskFamily",
    "TfdsImagesFamily",
    "from_dataset",
    "from_function",
]
