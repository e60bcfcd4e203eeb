"""The base class of families whose tasks are numbered, such as functions or users."""

import abc

import numpy as np
import tensorflow as tf

from amaml_tf.errors import UsageError
from amaml_tf.tasks.base import Episode, TaskFamily, fold_in, stream_seed

# So many tasks that two random tasks are practically never the same.
UNLIMITED = 2**31 - 1


class EnumeratedTaskFamily(TaskFamily):
    """A family with `num_tasks(split)` tasks, visited in a new random order in every round.

    A family of `UNLIMITED` tasks draws them at random instead. A subclass implements `num_tasks`
    and `_task_episode`.
    """

    @abc.abstractmethod
    def num_tasks(self, split: str) -> int:
        """Returns the number of different tasks in `split`."""

    @abc.abstractmethod
    def _task_episode(self, split: str, index: tf.Tensor, seed: tf.Tensor) -> Episode:
        """Returns an episode of task `index` (scalar int64); `seed` is int64 of shape [2]."""

    def task_indices(self, split: str, *, seed: int = 0, count: int) -> np.ndarray | None:
        self.require_split(split)
        if self.num_tasks(split) == UNLIMITED:
            return None
        indices = self._indices(split, seed, 0).take(count)
        return np.fromiter(indices.as_numpy_iterator(), np.int64, count)

    def task_episode(self, split: str, index: int, seed: int = 0) -> Episode:
        """Returns one episode of the task `index`, without a task axis.

        Args:
            split: one of `splits`.
            index: number of the task, 0 to `num_tasks(split) - 1`.
            seed: selects the episode of the task.

        Returns:
            `((support_x, support_y), (query_x, query_y))` as eager tensors.

        Raises:
            UsageError: unknown split or task.
        """
        self.require_task(split, index)
        visit = fold_in(stream_seed(seed, split, "single"), index)
        return self._task_episode(split, tf.constant(index, tf.int64), visit)

    def require_task(self, split: str, index: int) -> None:
        """Raises UsageError unless `split` has a task with number `index`."""
        self.require_split(split)
        if not 0 <= index < self.num_tasks(split):
            raise UsageError(
                f"Expected a task index from 0 to {self.num_tasks(split) - 1} in split {split!r} "
                f"of {type(self).__name__}, got {index}; choose one in that range."
            )

    def _stream(self, split: str, seed: int, first: int) -> tf.data.Dataset:
        visit_seed = stream_seed(seed, split, "episodes")

        @tf.autograph.experimental.do_not_convert
        def episode(number: tf.Tensor, index: tf.Tensor) -> Episode:
            return self._task_episode(split, index, fold_in(visit_seed, number))

        visits = tf.data.Dataset.zip(
            tf.data.Dataset.counter(first), self._indices(split, seed, first)
        )
        return visits.map(episode, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True)

    def _indices(self, split: str, seed: int, first: int) -> tf.data.Dataset:
        """Returns the index of each episode's task, from episode number `first` on."""
        count = self.num_tasks(split)
        order_seed = stream_seed(seed, split, "order")

        @tf.autograph.experimental.do_not_convert
        def any_task(number: tf.Tensor) -> tf.Tensor:
            seed = fold_in(order_seed, number)
            return tf.random.stateless_uniform((), seed, maxval=count, dtype=tf.int64)

        @tf.autograph.experimental.do_not_convert
        def all_tasks(number: tf.Tensor) -> tf.Tensor:
            every = tf.range(count, dtype=tf.int64)
            return tf.random.experimental.stateless_shuffle(every, fold_in(order_seed, number))

        if count == UNLIMITED:
            return tf.data.Dataset.counter(first).map(any_task)
        rounds = tf.data.Dataset.counter(first // count).map(all_tasks)
        return rounds.unbatch().skip(first % count)
