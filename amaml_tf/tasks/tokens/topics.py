"""Topics: few-shot classification of made-up texts, by the words that are frequent in them."""

import numpy as np
import tensorflow as tf

from amaml_tf.errors import UsageError
from amaml_tf.tasks.base import REGISTRY, Episode, Examples, TaskFamily, fold_in, stream_seed
from amaml_tf.tasks.sizes import require_positive

# Words differ in frequency by factors of e^2 in a theme, and themes in a topic likewise.
_CONTRAST = 2.0


@REGISTRY.register("topics")
class TopicsFamily(TaskFamily):
    """N-way K-shot episodes of token sequences, from themes that all tasks share.

    A *theme* is a distribution over the vocabulary. A class is a topic, a new random mixture of all
    themes, and its texts are words drawn from it, independently. What can be meta-learned are the
    themes. The family is a stand-in for texts of one's own, which `from_function` takes. The
    number of tasks is unlimited.

    Args:
        vocabulary_size: tokens are 0 to this number - 1.
        sequence_length: tokens of a text.
        num_themes: themes that all topics are mixtures of.
        num_ways: N, classes of an episode.
        num_support: K, support texts of each class in a training episode.
        num_query: Q, query texts of each class in a training episode.
        num_test_support: K of validation and test episodes; None: as in training.
        num_test_query: Q of validation and test episodes; None: as in training.
        task_seed: selects the themes.
        dtype: floating-point type of the weights of a network for it; tokens are int32.

    Raises:
        UsageError: a size is not positive.
    """

    def __init__(
        self,
        *,
        vocabulary_size: int = 1000,
        sequence_length: int = 64,
        num_themes: int = 20,
        num_ways: int = 5,
        num_support: int = 1,
        num_query: int = 5,
        num_test_support: int | None = None,
        num_test_query: int | None = None,
        task_seed: int = 0,
        dtype: str = "float32",
    ) -> None:
        if not isinstance(num_ways, int):
            raise UsageError(f"Expected num_ways to be one number, got {num_ways}; pass one.")
        super().__init__(
            kind="classification",
            input_shape=(require_positive("sequence_length", sequence_length),),
            num_outputs=num_ways,
            num_support=num_support,
            num_query=num_query,
            num_test_support=num_test_support,
            num_test_query=num_test_query,
            dtype=dtype,
        )
        self.vocabulary_size = require_positive("vocabulary_size", vocabulary_size)
        sizes = (require_positive("num_themes", num_themes), vocabulary_size)
        scores = np.random.default_rng(task_seed).normal(scale=_CONTRAST, size=sizes)
        self._themes = tf.nn.softmax(tf.constant(scores, tf.float32))

    def _stream(self, split: str, seed: int, first: int) -> tf.data.Dataset:
        num_support, num_query = self.sizes(split)
        split_seed = stream_seed(seed, split, "episodes")

        @tf.autograph.experimental.do_not_convert
        def episode(number: tf.Tensor) -> Episode:
            seeds = tf.random.split(fold_in(split_seed, number), 2)
            shape = (self.num_outputs, self._themes.shape[0])
            mixtures = tf.nn.softmax(_CONTRAST * tf.random.stateless_normal(shape, seeds[0]))
            logits = tf.math.log(mixtures @ self._themes)
            each = num_support + num_query
            count = each * self.input_shape[0]
            words = tf.random.stateless_categorical(logits, count, seeds[1], tf.int32)
            texts = tf.reshape(words, (self.num_outputs, each, *self.input_shape))
            return self._examples(texts[:, :num_support]), self._examples(texts[:, num_support:])

        return tf.data.Dataset.counter(first).map(
            episode, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True
        )

    def _examples(self, texts: tf.Tensor) -> Examples:
        ways, each = texts.shape[:2]
        x = tf.reshape(texts, (ways * each, *self.input_shape))
        return x, tf.repeat(tf.range(ways), each)
