"""Task families: sources of episodes as `tf.data` streams.

The file of a family registers it in `REGISTRY`, and one line here imports it. `--help` lists the
families in the order of these lines.
"""
# ruff: noqa: I001 - see above

from amaml_tf.tasks.functions.sinusoid import SinusoidFamily as SinusoidFamily
from amaml_tf.tasks.functions.cosmixture import CosMixtureFamily as CosMixtureFamily
from amaml_tf.tasks.functions.alpine import AlpineFamily as AlpineFamily
from amaml_tf.tasks.images.omniglot import OmniglotFamily as OmniglotFamily
from amaml_tf.tasks.images.cifar_fs import CifarFewShotFamily as CifarFewShotFamily
from amaml_tf.tasks.images.tfds_images import TfdsImagesFamily as TfdsImagesFamily
from amaml_tf.tasks.images.image_folder import ImageFolderFamily as ImageFolderFamily
from amaml_tf.tasks.tokens.topics import TopicsFamily as TopicsFamily
from amaml_tf.tasks.ratings.movielens import MovieLensFamily as MovieLensFamily
from amaml_tf.tasks.ratings.ratings_csv import RatingsFileFamily as RatingsFileFamily

# Families made from data in memory, or from code, have no name for flags.
from amaml_tf.tasks.custom import from_dataset as from_dataset, from_function as from_function
from amaml_tf.tasks.images.few_shot_images import FewShotImages as FewShotImages
from amaml_tf.tasks.images.labelled_images import LabelledImages as LabelledImages
from amaml_tf.tasks.ratings.ratings_family import Ratings as Ratings, RatingsFamily as RatingsFamily

from amaml_tf.tasks.base import REGISTRY as REGISTRY, TaskFamily as TaskFamily
