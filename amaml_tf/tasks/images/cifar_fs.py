"""CIFAR-FS: few-shot classification of CIFAR-100 images."""

from amaml_tf.tasks.base import REGISTRY
from amaml_tf.tasks.class_split import split_by_names
from amaml_tf.tasks.images.few_shot_images import FewShotImages
from amaml_tf.tasks.images.tfds_images import load_tfds_images
from amaml_tf.tasks.sizes import Size

# The split that was published with CIFAR-FS: 64, 16 and 20 classes.
_NAMES = {
    "train": """
        apple aquarium_fish bear bee bottle bowl boy bridge bus can castle caterpillar chair clock
        cloud cockroach couch cup dinosaur dolphin elephant forest girl hamster house kangaroo
        keyboard lawn_mower lion lizard lobster mountain mouse mushroom oak_tree orange orchid
        palm_tree pear pine_tree plate porcupine possum rabbit raccoon ray road seal shrew skunk
        skyscraper snake spider squirrel streetcar sunflower tank tiger train trout tulip turtle
        willow_tree wolf
    """,
    "validation": """
        beaver beetle butterfly camel cattle crab crocodile flatfish lamp maple_tree motorcycle
        otter sea shark television tractor
    """,
    "test": """
        baby bed bicycle chimpanzee fox leopard man pickup_truck plain poppy rocket rose snail
        sweet_pepper table telephone wardrobe whale woman worm
    """,
}
CLASS_SPLIT = {split: names.split() for split, names in _NAMES.items()}


@REGISTRY.register("cifar_fs")
class CifarFewShotFamily(FewShotImages):
    """N-way K-shot episodes of CIFAR-100 classes, 32x32 RGB, 600 images per class.

    The split is the published one: 64 classes for training, 16 for validation, 20 for testing.

    Args:
        data_dir: folder of data sets prepared by `tensorflow_datasets` ("cifar100").
        download: whether to download the data set if `data_dir` does not hold it.
        num_ways: N, classes of an episode.
        num_support: K, support images of each class in a training episode.
        num_query: Q, query images of each class in a training episode.
        num_test_support: K of validation and test episodes; None: as in training.
        num_test_query: Q of validation and test episodes; None: as in training.
        dtype: floating-point type of the inputs.

    Raises:
        UsageError: the data set is missing, or too small for such episodes.

    Reference: Bertinetto, Henriques, Torr, Vedaldi, "Meta-learning with differentiable closed-form
    solvers", ICLR 2019.
    """

    def __init__(
        self,
        *,
        data_dir: str | None,
        download: bool = False,
        num_ways: Size = 5,
        num_support: Size = 1,
        num_query: Size = 15,
        num_test_support: Size | None = None,
        num_test_query: Size | None = None,
        dtype: str = "float32",
    ) -> None:
        data = load_tfds_images("cifar100", data_dir, download=download)
        super().__init__(
            data,
            split_by_names(data.class_names, CLASS_SPLIT),
            num_ways=num_ways,
            num_support=num_support,
            num_query=num_query,
            num_test_support=num_test_support,
            num_test_query=num_test_query,
            dtype=dtype,
        )
