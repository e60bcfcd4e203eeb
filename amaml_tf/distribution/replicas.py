"""Replicas: tasks are divided among them, and every replica has what was computed of all tasks."""

from __future__ import annotations

import contextlib
import json
import pathlib
import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

import keras
import numpy as np
import tensorflow as tf

# TensorFlow has no public name for it: an error that ends the other processes of a cluster.
from tensorflow.python.eager import context

from amaml_tf.aliases import PathLike
from amaml_tf.distribution.packing import Packing
from amaml_tf.errors import TrainingError, UsageError
from amaml_tf.files import own_folder
from amaml_tf.functional import keras_patches

V = TypeVar("V")
T = TypeVar("T")
P = TypeVar("P", bound="tuple[list[tf.Tensor], object]")


class Replicas:
    """Devices of one or several processes (workers), which solve the tasks of a batch together.

    Variables and optimizer are those of one device, each worker has its own, and all make the same
    meta-updates. TensorFlow's strategy calls a function on every replica and adds up the results.

    Args:
        strategy: `tf.distribute.MirroredStrategy` or `MultiWorkerMirroredStrategy`.
    """

    def __init__(self, strategy: tf.distribute.Strategy) -> None:
        self._strategy = strategy
        resolver = strategy.cluster_resolver
        spec = resolver.cluster_spec().as_dict() if resolver else {}
        #: The addresses of the workers, the chief's first; empty if there is only this process.
        self.workers: list[str] = [*spec.get("chief", []), *spec.get("worker", [])]
        self.worker = 0
        if self.workers:
            is_behind = resolver.task_type == "worker"
            self.worker = resolver.task_id + (len(spec.get("chief", [])) if is_behind else 0)
        self._num_local = max(strategy.num_replicas_in_sync // max(len(self.workers), 1), 1)
        self._folder: pathlib.Path | None = None
        self._summed = tf.function(self._sum, autograph=False, reduce_retracing=True)
        # The number of the signal that came here, and of one that came to any worker.
        self._signal = tf.Variable(0.0, trainable=False)
        self._signal_of_any = tf.Variable(0.0, trainable=False)

    @property
    def number(self) -> int:
        """How many replicas there are."""
        return int(self._strategy.num_replicas_in_sync)

    @property
    def is_chief(self) -> bool:
        """Whether this process is the one that writes files."""
        return self.worker == 0

    @property
    def spans_processes(self) -> bool:
        """Whether there are other workers."""
        return len(self.workers) > 1

    def __call__(
        self,
        program: Callable[[V, T], P],
        values: V,
        tasks: T,
        num_tasks: int | tf.Tensor,
    ) -> P:
        """Divides tasks among the replicas, and returns the joined result on each of them.

        Replica r of R has the tasks r B / R to (r + 1) B / R, rounded down. One sum over all
        replicas joins the results.

        Args:
            program: computes a part from `values` and some tasks.
            values: what all tasks share.
            tasks: a structure of arrays with the task axis first, the same on all workers.
            num_tasks: B.

        Raises:
            UsageError: there are fewer tasks than replicas.
        """
        self._require_enough(num_tasks)
        packings: list[Packing[P]] = []

        def on_replica(values: V, tasks: T) -> tf.Tensor:
            replica = tf.distribute.get_replica_context()
            place = int(tf.get_static_value(replica.replica_id_in_sync_group))
            begin, end = (num_tasks * at // self.number for at in (place, place + 1))
            share = tf.nest.map_structure(lambda each: each[begin:end], tasks)
            with keras_patches.losses_of_one_device():
                parts = program(values, share)
            found = Packing(parts, begin, end, num_tasks)
            packings.append(found)
            notes = self._notes(place, tasks, found.dtype)
            vector = tf.concat([notes, found.vector], axis=0)
            return replica.all_reduce(tf.distribute.ReduceOp.SUM, vector)

        total = self._of_first(self._strategy.run(on_replica, args=(values, tasks)))
        size = 2 * max(len(self.workers), 1)
        with tf.control_dependencies(self._read_notes(total[:size])):
            return packings[0].unpacked(tf.identity(total[size:]))

    def _require_enough(self, num_tasks: int | tf.Tensor) -> None:
        if not isinstance(num_tasks, int):
            tf.debugging.assert_greater_equal(
                num_tasks, self.number, "Expected a task for each replica, got fewer."
            )
        elif num_tasks < self.number:
            raise UsageError(
                f"Expected batches of {self.number} tasks or more, one for each replica, got "
                f"{num_tasks}; take more tasks at a time, or fewer devices."
            )

    # -- what workers tell each other with every batch ------------------------------------------

    def _notes(self, place: int, tasks: T, dtype: tf.DType) -> tf.Tensor:
        """Returns two numbers for each worker: the signal that came, and a checksum of its tasks.

        All but those of this worker are 0, and so are these, except on its first replica.
        """
        count = max(len(self.workers), 1)
        if place % self._num_local:
            return tf.zeros([2 * count], dtype)
        checksum = _checksum(tasks) if self.spans_processes else 0
        mine = tf.stack([tf.cast(self._signal, dtype), tf.cast(checksum, dtype)])
        return tf.reshape(tf.one_hot(self.worker, count, dtype=dtype)[:, None] * mine, [-1])

    def _read_notes(self, notes: tf.Tensor) -> list[tf.Operation]:
        signals, checksums = tf.unstack(tf.reshape(notes, [-1, 2]), axis=1)
        self._signal_of_any.assign(tf.cast(tf.reduce_max(signals), tf.float32))
        if not self.spans_processes:
            return []
        fine = tf.reduce_all(checksums == checksums[0])
        return [tf.debugging.Assert(fine, [_UNLIKE])]

    def announce(self, signal: int | None) -> None:
        """Tells all workers, with the next batch, that a signal came here."""
        self._signal.assign(float(signal or 0))

    def signal(self) -> int | None:
        """Returns the signal that a worker has announced with the last batch; None: none."""
        return int(self._signal_of_any.numpy()) or None

    # -- what the chief decides -------------------------------------------------------------------

    def of_chief(self, decision: T) -> T:
        """Returns what the chief passes, which JSON can hold, whatever the others pass."""
        if not self.spans_processes:
            return decision
        text = np.frombuffer(json.dumps(decision).encode(), np.uint8)
        size = int(self.sum_of(np.array([len(text) if self.is_chief else 0], np.float64))[0])
        sent = np.zeros(size)
        if self.is_chief:
            sent[:] = text
        return json.loads(self.sum_of(sent).astype(np.uint8).tobytes().decode())

    def share(self, variables: Sequence[keras.Variable]) -> None:
        """Gives the variables of all workers the values that the chief's have."""
        if not self.spans_processes:
            return
        for variable in variables:
            value = variable.numpy()
            wide = value if value.dtype in (np.float32, np.float64) else value.astype(np.float64)
            sent = wide if self.is_chief else np.zeros_like(wide)
            variable.assign(self.sum_of(sent.reshape(-1)).reshape(value.shape).astype(value.dtype))

    def require_like_chief(self, settings: dict[str, object]) -> None:
        """Raises UsageError unless the chief has the same settings, which JSON can hold."""
        there = self.of_chief(settings)
        here = json.loads(json.dumps(settings))
        differing = sorted(name for name in here | there if here.get(name) != there.get(name))
        if differing:
            name = differing[0]
            raise UsageError(
                f"Expected the settings of the chief, got another {name} on worker {self.worker}: "
                f"{here.get(name)!r:.100} here, {there.get(name)!r:.100} there; give all workers "
                "the same command."
            )

    def sum_of(self, values: np.ndarray) -> np.ndarray:
        """Returns the sum of an array `[n]` over all workers."""
        return self._summed(tf.constant(values)).numpy()

    def _sum(self, values: tf.Tensor) -> tf.Tensor:
        def on_replica(values: tf.Tensor) -> tf.Tensor:
            replica = tf.distribute.get_replica_context()
            place = int(tf.get_static_value(replica.replica_id_in_sync_group))
            mine = tf.zeros_like(values) if place % self._num_local else tf.identity(values)
            return replica.all_reduce(tf.distribute.ReduceOp.SUM, mine)

        return self._of_first(self._strategy.run(on_replica, args=(values,)))

    def _of_first(self, per_replica: tf.Tensor) -> tf.Tensor:
        return self._strategy.experimental_local_results(per_replica)[0]

    # -- the process ------------------------------------------------------------------------------

    def folder(self, path: PathLike) -> pathlib.Path:
        """Returns where this worker may write: to `path` if it is the chief, else to its own place.

        That place is removed when the process ends, or by the next such process if it was killed.
        """
        if self.is_chief:
            return pathlib.Path(path)
        if self._folder is None:
            self._folder = own_folder("amaml-worker-")
        return self._folder

    @contextlib.contextmanager
    def losses_told(self) -> Iterator[None]:
        """Raises TrainingError, in a sentence, if another worker is lost.

        If this one fails, the others are told, so that they do not wait for it.
        """
        if not self.spans_processes:
            yield
            return
        try:
            yield
        except _OF_OTHERS as error:
            raise TrainingError(self._loss(error)) from None
        except BaseException as error:
            are_all_stopped = isinstance(error, KeyboardInterrupt) and self.signal() is not None
            if not are_all_stopped:
                self._tell_others(error)
            if isinstance(error, tf.errors.InvalidArgumentError) and _UNLIKE in str(error):
                raise TrainingError(_UNLIKE) from None
            raise

    def _loss(self, error: tf.errors.OpError) -> str:
        text = " ".join(str(error.message).split())
        found = re.search(r"aborted by: (.*?)(?:\.|; |$| \[)", text)
        return (
            f"Expected all {len(self.workers)} workers to be at work, but worker {self.worker} has "
            f"lost another ({found[1] if found else text:.160}); start all of them again with the "
            "same command to go on from the newest checkpoint."
        )

    def _tell_others(self, error: BaseException) -> None:
        reason = f"worker {self.worker} ended: {type(error).__name__}"
        with contextlib.suppress(tf.errors.OpError):  # they may have ended as well
            context.context().report_error_to_cluster(tf.errors.ABORTED, reason)


#: What a sum over all workers fails with if one of them is lost.
_OF_OTHERS = (
    tf.errors.UnavailableError,
    tf.errors.AbortedError,
    tf.errors.CancelledError,
    tf.errors.DeadlineExceededError,
    tf.errors.FailedPreconditionError,
    tf.errors.InternalError,
)
_UNLIKE = (
    "Expected the same episodes on all workers, got others on some: a generator or a data set of "
    "your own must depend on nothing but the seed and the number of the episode."
)


def _checksum(tasks: Any) -> tf.Tensor:
    """Returns a number below 2^20 that other tasks would hardly have, from some of their values."""
    numbers = []
    for each in tf.nest.flatten(tasks):
        flat = tf.reshape(each, [-1])
        some = flat[:: tf.maximum(tf.size(flat) // 256, 1)]
        text = tf.strings.join([tf.strings.reduce_join(tf.strings.as_string(some), separator=" ")])
        numbers.append(tf.strings.to_hash_bucket_fast(text, 2**20))
    return tf.math.floormod(tf.add_n(numbers), 2**20)
