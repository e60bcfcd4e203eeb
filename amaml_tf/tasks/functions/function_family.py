"""The base class of the synthetic families: regression on functions with a known formula."""

import abc

import tensorflow as tf

from amaml_tf.errors import UsageError
from amaml_tf.tasks.base import Episode, fold_in, stream_seed
from amaml_tf.tasks.enumerated import EnumeratedTaskFamily
from amaml_tf.tasks.padding import first_count, weighted
from amaml_tf.tasks.sizes import require_positive
from amaml_tf.units import Affine, Units

# The target scaler uses this many points of every training task, as many as the paper's tasks
# have.
SCALER_POINTS = 1000


class FunctionFamily(EnumeratedTaskFamily):
    """Functions f(x; p) on a box: p is drawn once per task, and new points x for every episode.

    Parameters p are uniform in `parameter_ranges` and depend only on (task_seed, split, index). So
    different splits have different tasks, and the tasks are the same in every run. Inputs x are
    uniform on `domain` in each coordinate. Everything is computed in float64 and then cast, so the
    tasks are the same for every dtype.

    Where a size is a range, each episode draws its size: all numbers of the range are equally
    likely, for support and query set independently.

    Args:
        dimension: number of coordinates of x.
        domain: lowest and highest value of each coordinate.
        parameter_ranges: lowest and highest value of each parameter.
        num_tasks: tasks in each split.
        task_seed: selects the tasks; it is not the seed of a stream of episodes.
        standardize_inputs: whether inputs are (x - mean) / deviation, with the exact moments of the
            uniform distribution on `domain`.
        standardize_targets: whether targets are (y - mean) / deviation, with the moments over 1,000
            random points of every training task; other splits are not used.
        **sizes: `num_support`, `num_query`, `num_test_support`, `num_test_query` and `dtype`, as in
            `TaskFamily`.
    """

    takes_ranges = True

    def __init__(
        self,
        *,
        dimension: int,
        domain: tuple[float, float],
        parameter_ranges: list[tuple[float, float]],
        num_tasks: int,
        task_seed: int,
        standardize_inputs: bool,
        standardize_targets: bool,
        **sizes: object,
    ) -> None:
        super().__init__(
            kind="regression",
            input_shape=(require_positive("dimension", dimension),),
            num_outputs=1,
            **sizes,  # type: ignore[arg-type]
        )
        self.domain = domain
        self._parameter_ranges = tf.constant(parameter_ranges, tf.float64)
        self._num_tasks = require_positive("num_tasks", num_tasks)
        self._task_seed = task_seed
        self.input_mean, self.input_scale = 0.0, 1.0
        self.target_mean, self.target_scale = 0.0, 1.0
        if standardize_inputs:
            self.input_mean = (domain[0] + domain[1]) / 2
            self.input_scale = (domain[1] - domain[0]) / 12**0.5
        if standardize_targets:
            self.target_mean, self.target_scale = self._target_moments()

    @property
    def units(self) -> Units | None:
        inputs = Affine(self.input_mean, self.input_scale)
        targets = Affine(self.target_mean, self.target_scale)
        as_they_are = Affine(0.0, 1.0)
        return None if inputs == targets == as_they_are else Units(inputs, targets)

    @abc.abstractmethod
    def function(self, x: tf.Tensor, parameters: tf.Tensor) -> tf.Tensor:
        """Returns f(x; p) in its own units.

        Args:
            x: float64 of shape [..., points, dimension].
            parameters: p, float64 of shape [..., parameters].

        Returns:
            float64 of shape [..., points, 1].
        """

    def num_tasks(self, split: str) -> int:
        """Returns the number of different tasks in `split`."""
        self.require_split(split)
        return self._num_tasks

    def parameters(self, split: str, index: int | tf.Tensor) -> tf.Tensor:
        """Returns the parameters of task `index`, float64 of shape [parameters]."""
        seed = fold_in(stream_seed(self._task_seed, split, "tasks"), index)
        low, high = tf.unstack(self._parameter_ranges, axis=-1)
        return tf.random.stateless_uniform(low.shape, seed, low, high, dtype=tf.float64)

    def grid(self, split: str, index: int, num_points: int = 200) -> tuple[tf.Tensor, tf.Tensor]:
        """Returns the true curve of a task over its whole domain, for drawing.

        Args:
            split: one of `splits`.
            index: number of the task.
            num_points: number of points, evenly spaced.

        Returns:
            x and y of shape [num_points, 1], in the units of the episodes.

        Raises:
            UsageError: the functions have more than one coordinate, or there is no such task.
        """
        self.require_task(split, index)
        if self.input_shape != (1,):
            raise UsageError(
                f"Expected functions of one coordinate to draw a curve of, got "
                f"{self.input_shape[0]} coordinates; build the family with dimension=1."
            )
        x = tf.linspace(tf.constant(self.domain[0], tf.float64), self.domain[1], num_points)
        return self._examples(x[:, tf.newaxis], self.parameters(split, index))

    def _task_episode(self, split: str, index: tf.Tensor, seed: tf.Tensor) -> Episode:
        num_support, num_query = self.sizes(split)
        points = self._points(seed, num_support + num_query)
        x, y = self._examples(points, self.parameters(split, index))
        support, query = (x[:num_support], y[:num_support]), (x[num_support:], y[num_support:])
        ranges = self.size_ranges(split)
        if not any(each.varies for each in ranges):
            return support, query
        support_weight, query_weight = (
            first_count(each.draw(fold_in(seed, number)), each.high, self.dtype)
            for number, each in enumerate(ranges)
        )
        return weighted(support, support_weight), weighted(query, query_weight)

    def _points(self, seed: tf.Tensor, count: int) -> tf.Tensor:
        low, high = (tf.constant(bound, tf.float64) for bound in self.domain)
        return tf.random.stateless_uniform((count, *self.input_shape), seed, low, high, tf.float64)

    def _examples(self, x: tf.Tensor, parameters: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        y = self.function(x, parameters)
        inputs = (x - self.input_mean) / self.input_scale
        targets = (y - self.target_mean) / self.target_scale
        return tf.cast(inputs, self.dtype), tf.cast(targets, self.dtype)

    def _target_moments(self) -> tuple[float, float]:
        seed = stream_seed(self._task_seed, "train", "scaler")
        indices = range(self._num_tasks)
        points = tf.stack([self._points(fold_in(seed, i), SCALER_POINTS) for i in indices])
        parameters = tf.stack([self.parameters("train", i) for i in indices])
        targets = self.function(points, parameters)
        return float(tf.reduce_mean(targets)), float(tf.math.reduce_std(targets))
