"""Families whose tasks can be counted: a function, a user, anything with a number."""

import abc

import numpy as np
import tensorflow as tf

from amaml_tf.tasks.base import Episode, TaskFamily, fold_in, stream_seed

# So many tasks that random ones are different ones.
UNLIMITED = 2**31 - 1


class EnumeratedTaskFamily(TaskFamily):
    """A family with `num_tasks(split)` tasks, visited in a new random order in every round.

    A family of `UNLIMITED` tasks draws them at random instead. A subclass implements `num_tasks`
    and `_task_episode`.
    """

    @abc.abstractmethod
    def num_tasks(self, split: str) -> int:
        """How many different tasks `split` has."""

    @abc.abstractmethod
    def _task_episode(self, split: str, index: tf.Tensor, seed: tf.Tensor) -> Episode:
        """Episode of task `index` (scalar int64); `seed` is int64 of shape [2]."""

    def task_indices(self, split: str, *, seed: int = 0, count: int) -> np.ndarray | None:
        self.require_split(split)
        if self.num_tasks(split) == UNLIMITED:
            return None
        indices = self._indices(split, seed, 0).take(count)
        return np.fromiter(indices.as_numpy_iterator(), np.int64, count)

    def task_episode(self, split: str, index: int, seed: int = 0) -> Episode:
        """One episode of one known task, without a task axis.

        Args:
            split: one of `splits`.
            index: which task, 0 to `num_tasks(split) - 1`.
            seed: which visit to the task.

        Returns:
            `((support_x, support_y), (query_x, query_y))` as eager tensors.

        Raises:
            ValueError: unknown split or task.
        """
        self.require_task(split, index)
        visit = fold_in(stream_seed(seed, split, "single"), index)
        return self._task_episode(split, tf.constant(index, tf.int64), visit)

    def require_task(self, split: str, index: int) -> None:
        """Raises ValueError unless `split` has a task `index`."""
        self.require_split(split)
        if not 0 <= index < self.num_tasks(split):
            raise ValueError(
                f"Expected a task index from 0 to {self.num_tasks(split) - 1} in split {split!r} "
                f"of {type(self).__name__}, got {index}; choose one in that range."
            )

    def _stream(self, split: str, seed: int, first: int) -> tf.data.Dataset:
        visit_seed = stream_seed(seed, split, "episodes")

        def episode(number: tf.Tensor, index: tf.Tensor) -> Episode:
            return self._task_episode(split, index, fold_in(visit_seed, number))

        visits = tf.data.Dataset.zip(
            tf.data.Dataset.counter(first), self._indices(split, seed, first)
        )
        return visits.map(episode, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True)

    def _indices(self, split: str, seed: int, first: int) -> tf.data.Dataset:
        """Which task each episode from number `first` on visits."""
        count = self.num_tasks(split)
        order_seed = stream_seed(seed, split, "order")
        if count == UNLIMITED:
            return tf.data.Dataset.counter(first).map(
                lambda number: tf.random.stateless_uniform(
                    (), fold_in(order_seed, number), maxval=count, dtype=tf.int64
                )
            )
        rounds = tf.data.Dataset.counter(first // count).map(
            lambda number: tf.random.experimental.stateless_shuffle(
                tf.range(count, dtype=tf.int64), fold_in(order_seed, number)
            )
        )
        return rounds.unbatch().skip(first % count)
