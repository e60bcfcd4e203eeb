"""Omniglot: handwritten characters of fifty alphabets, twenty images of each."""

from amaml_tf.tasks.base import REGISTRY
from amaml_tf.tasks.class_split import split_by_seed
from amaml_tf.tasks.images.few_shot_images import FewShotImages
from amaml_tf.tasks.images.labelled_images import LabelledImages
from amaml_tf.tasks.images.tfds_images import load_tfds_images
from amaml_tf.tasks.sizes import Size

# Characters for training, validation and testing, as in MAML.
SPLIT_SIZES = (1100, 100, 423)


@REGISTRY.register("omniglot")
class OmniglotFamily(FewShotImages):
    """N-way K-shot episodes of Omniglot characters, 28x28 grey, with ink = 1 and paper = 0.

    All 1,623 characters (`tensorflow_datasets` splits "train" and "test") are divided at random
    into 1,100 for training, 100 for validation and 423 for testing. Each is rotated by 90, 180 and
    270 degrees to give three more classes of the same split: 4,400, 400 and 1,692 classes in all.

    Args:
        data_dir: folder of data sets prepared by `tensorflow_datasets`.
        split_seed: selects the random division of the characters.
        download: whether to download the data set if `data_dir` does not hold it.
        num_ways: N, classes of an episode.
        num_support: K, support images of each class in a training episode.
        num_query: Q, query images of each class in a training episode.
        num_test_support: K of validation and test episodes; None: as in training.
        num_test_query: Q of validation and test episodes; None: as in training.
        dtype: floating-point type of the inputs.

    Raises:
        UsageError: the data set is missing, or too small for such episodes.

    References:
        Lake, Salakhutdinov, Tenenbaum, "Human-level concept learning through probabilistic program
        induction", Science 350, 2015. The protocol: Santoro et al., "Meta-Learning with
        Memory-Augmented Neural Networks", ICML 2016; the split's sizes: Finn, Abbeel, Levine,
        "Model-Agnostic Meta-Learning for Fast Adaptation of Deep Networks", ICML 2017.
    """

    inverted = True  # the files have black ink, 0, on white paper, 255

    def __init__(
        self,
        *,
        data_dir: str | None,
        split_seed: int = 0,
        download: bool = False,
        num_ways: Size = 5,
        num_support: Size = 1,
        num_query: Size = 15,
        num_test_support: Size | None = None,
        num_test_query: Size | None = None,
        dtype: str = "float32",
    ) -> None:
        scans = load_tfds_images(
            "omniglot",
            data_dir,
            tfds_splits=("train", "test"),
            image_size=28,
            channels=1,
            download=download,
        )
        ink = LabelledImages(255 - scans.images, scans.labels, scans.class_names)
        super().__init__(
            ink,
            split_by_seed(len(ink.class_names), split_seed, SPLIT_SIZES),
            num_ways=num_ways,
            num_support=num_support,
            num_query=num_query,
            num_test_support=num_test_support,
            num_test_query=num_test_query,
            rotations=True,
            dtype=dtype,
        )
