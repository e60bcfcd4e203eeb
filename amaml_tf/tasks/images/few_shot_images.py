"""N-way K-shot episodes from labelled images, the base of the image families."""

from collections.abc import Mapping, Sequence
from typing import TypeAlias

import numpy as np
import tensorflow as tf

from amaml_tf.errors import UsageError
from amaml_tf.tasks.base import SPLITS, Episode, TaskFamily, fold_in, stream_seed
from amaml_tf.tasks.images.labelled_images import LabelledImages
from amaml_tf.tasks.padding import first_count, weighted
from amaml_tf.tasks.sizes import Size, size_range
from amaml_tf.units import Pixels, Units

Pair: TypeAlias = tuple[tf.Tensor, tf.Tensor]

ROTATIONS = 4  # by 0, 90, 180 and 270 degrees


class FewShotImages(TaskFamily):
    """N-way K-shot episodes: N random classes, K support and Q query images of each.

    The classes of one split are never seen in another. An episode's classes are numbered 0 to N - 1
    in the order in which they were drawn, and its images are in the order of the classes. Inputs
    are pixels in [0, 1]. The data set stays in memory as uint8; only the images of an episode are
    converted.

    N, K and Q may be ranges `(low, high)`. Each episode then draws its own N, K and Q, which are
    the same for all its classes. The three are independent, and all numbers of a range are equally
    likely. The episode is padded to the largest N, K and Q. Its labels are then 0 to N - 1 of the
    outputs that the network has for the largest N.

    Args:
        data: the images.
        class_split: labels of the classes of each split; an empty split is left out.
        num_ways: N, classes of an episode, in every split.
        num_support: K, support images of each class in a training episode.
        num_query: Q, query images of each class in a training episode.
        num_test_support: K of validation and test episodes; None: as in training.
        num_test_query: Q of validation and test episodes; None: as in training.
        rotations: whether each class rotated by 90, 180 and 270 degrees gives three more classes,
            in every split. Images must then be square.
        dtype: floating-point type of the inputs.

    Raises:
        UsageError: a split has fewer than the largest N classes, or a class fewer than the largest
            K + Q images.
    """

    #: Whether the pixels of the image files were turned round: ink is 1, and paper 0.
    inverted = False
    takes_ranges = True

    def __init__(
        self,
        data: LabelledImages,
        class_split: Mapping[str, Sequence[int]],
        *,
        num_ways: Size = 5,
        num_support: Size = 1,
        num_query: Size = 15,
        num_test_support: Size | None = None,
        num_test_query: Size | None = None,
        rotations: bool = False,
        dtype: str = "float32",
    ) -> None:
        self._num_ways = size_range("num_ways", num_ways)
        super().__init__(
            kind="classification",
            input_shape=data.images.shape[1:],
            num_outputs=self._num_ways.high,
            num_support=num_support,
            num_query=num_query,
            num_test_support=num_test_support,
            num_test_query=num_test_query,
            dtype=dtype,
        )
        self.splits = tuple(split for split in SPLITS if len(class_split.get(split, ())) > 0)
        self._rotations = ROTATIONS if rotations else 1
        with tf.device("CPU"):  # episodes are assembled there, whatever device trains
            self._images = tf.constant(data.images)
        # Images of class c: self._by_class[self._starts[c] : self._starts[c] + self._counts[c]].
        self._by_class = np.argsort(data.labels, kind="stable")
        self._counts = np.bincount(data.labels, minlength=len(data.class_names))
        self._starts = np.cumsum(self._counts) - self._counts
        self._class_split = {split: np.asarray(class_split[split]) for split in self.splits}
        self._class_names = data.class_names
        # Validation classes are often few, and a run may not need them: they are checked on use.
        for split in ("train", "test"):
            if split in self.splits:
                self._require_enough(split)

    @property
    def units(self) -> Units:
        """Pixels as uint8, of the polarity of the image files."""
        return Units(Pixels(inverted=self.inverted))

    def num_classes(self, split: str) -> int:
        """Returns the number of classes that episodes of `split` draw from, with rotated ones."""
        self.require_split(split)
        return len(self._class_split[split]) * self._rotations

    def _require_enough(self, split: str) -> None:
        if self.num_outputs > self.num_classes(split):
            raise UsageError(
                f"Expected at most {self.num_classes(split)} ways, the number of classes of split "
                f"{split!r}, got {self.num_outputs}; ask for fewer ways."
            )
        labels = self._class_split[split]
        fewest = labels[np.argmin(self._counts[labels])]
        num_support, num_query = self.sizes(split)
        if num_support + num_query > self._counts[fewest]:
            raise UsageError(
                f"Expected at most {self._counts[fewest]} support and query images of a class in "
                f"split {split!r}, all that class {self._class_names[fewest]!r} has, got "
                f"{num_support} + {num_query}; ask for fewer."
            )

    def _stream(self, split: str, seed: int, first: int) -> tf.data.Dataset:
        self._require_enough(split)
        labels = self._class_split[split]
        num_classes, most = self.num_classes(split), int(self._counts[labels].max())
        by_class = tf.constant(self._by_class, tf.int32)
        starts = tf.constant(self._starts[labels], tf.int32)
        counts = tf.constant(self._counts[labels], tf.int32)
        num_support, num_query = self.sizes(split)
        split_seed = stream_seed(seed, split, "episodes")

        @tf.autograph.experimental.do_not_convert
        def episode(number: tf.Tensor) -> Episode:
            seeds = tf.random.split(fold_in(split_seed, number), 2)
            drawn = _distinct_numbers(
                tf.constant([num_classes]), num_classes, self.num_outputs, seeds[0]
            )[0]
            classes, turns = drawn // self._rotations, drawn % self._rotations
            class_counts = tf.gather(counts, classes)
            places = _distinct_numbers(class_counts, most, num_support + num_query, seeds[1])
            chosen = tf.gather(by_class, tf.gather(starts, classes)[:, tf.newaxis] + places)
            images = tf.gather(self._images, chosen)
            if self._rotations > 1:
                images = _turned(images, turns)
            support = self._examples(images[:, :num_support])
            query = self._examples(images[:, num_support:])
            return self._sized(split, support, query, fold_in(split_seed, number))

        return tf.data.Dataset.counter(first).map(
            episode, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True
        )

    def _sized(self, split: str, support: Pair, query: Pair, seed: tf.Tensor) -> Episode:
        """Returns an episode, with weights for the sizes that it draws if a size is a range."""
        sizes = (self._num_ways, *self.size_ranges(split))
        if not any(each.varies for each in sizes):
            return support, query
        ways, *numbers = (
            first_count(each.draw(fold_in(seed, number)), each.high, self.dtype)
            for number, each in enumerate(sizes)
        )
        # An example counts if its class does and its place in the class does.
        weights = [tf.reshape(ways[:, tf.newaxis] * each, [-1]) for each in numbers]
        return weighted(support, weights[0]), weighted(query, weights[1])

    def _examples(self, images: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """Returns pixels in [0, 1] and labels.

        Args:
            images: uint8 of shape [ways, each, height, width, channels].
        """
        ways, each = images.shape[:2]
        x = tf.cast(tf.reshape(images, (ways * each, *self.input_shape)), self.dtype) / 255
        return x, tf.repeat(tf.range(ways), each)


def _distinct_numbers(
    counts: tf.Tensor, highest_count: int, size: int, seed: tf.Tensor
) -> tf.Tensor:
    """Returns `size` different random numbers in [0, count) per count, int32 [counts, size]."""
    # The positions of the highest of `count` random scores. (tf.random.experimental.index_shuffle
    # is no alternative: in TensorFlow 2.21 all its seeds together give only 256 permutations.)
    scores = tf.random.stateless_uniform((counts.shape[0], highest_count), seed)
    exists = tf.range(highest_count) < tf.reshape(counts, (-1, 1))
    return tf.math.top_k(tf.where(exists, scores, -1.0), size).indices


def _turned(images: tf.Tensor, turns: tf.Tensor) -> tf.Tensor:
    """Returns each class's images rotated by turns x 90 degrees.

    Args:
        images: of shape [ways, each, height, width, channels].
        turns: integers of shape [ways].
    """
    signature = tf.TensorSpec(images.shape[1:], images.dtype)
    return tf.map_fn(
        lambda each: tf.image.rot90(*each), (images, turns), fn_output_signature=signature
    )
