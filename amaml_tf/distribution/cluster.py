"""Which devices there are: those of this machine, or of all workers that `TF_CONFIG` names."""

from __future__ import annotations

import json
import os

import keras
import tensorflow as tf

from amaml_tf.distribution.replicas import Replicas
from amaml_tf.errors import UsageError

DISTRIBUTIONS = ("none", "mirrored", "multi_worker")

_EXAMPLE = (
    '{"cluster": {"worker": ["host0:2222", "host1:2222"]}, "task": {"type": "worker", "index": 0}}'
)


def replicas_of(distribution: str) -> Replicas | None:
    """Returns the replicas of a distribution, by its name; None for "none".

    Raises:
        UsageError: there is no such distribution, or its machines or devices are not there.
    """
    if distribution not in DISTRIBUTIONS:
        raise UsageError(
            f"Expected distribution to be one of {', '.join(DISTRIBUTIONS)}, got {distribution!r}; "
            "use one of them."
        )
    if distribution == "none":
        return None
    return mirrored() if distribution == "mirrored" else multi_worker()


def mirrored() -> Replicas:
    """Returns a replica for each GPU of this machine, or for each (logical) CPU without GPUs."""
    devices = tf.config.list_logical_devices("GPU") or tf.config.list_logical_devices("CPU")
    return Replicas(tf.distribute.MirroredStrategy([device.name for device in devices]))


def multi_worker() -> Replicas:
    """Returns the replicas of all workers of a cluster: each GPU, or each worker without GPUs.

    The environment variable `TF_CONFIG` names the workers and says which of them this process is.
    Call this before TensorFlow has computed anything. It returns when all workers are there.

    Raises:
        UsageError: `TF_CONFIG` is missing or wrong, or TensorFlow has computed something.
    """
    _require_cluster()
    try:
        return Replicas(tf.distribute.MultiWorkerMirroredStrategy())
    except RuntimeError as error:
        raise UsageError(
            "Expected TensorFlow to have computed nothing before multi_worker() connects the "
            f"workers, got: {error} Call it first in the program."
        ) from error
    except tf.errors.OpError as error:
        raise UsageError(
            "Expected workers that reach each other at the addresses in TF_CONFIG, and a free port "
            f"here, got: {' '.join(str(error).split()):.200}; pass other ports or hosts."
        ) from error


def refuse_strategies(model: keras.Model) -> None:
    """Raises UsageError if `model` was made, or this is called, under the scope of a strategy.

    Keras would add up what every replica learns by itself, from losses that it has divided.
    """
    values = [getattr(variable, "value", variable) for variable in model.variables]
    mirrored_values = any(isinstance(each, tf.distribute.DistributedValues) for each in values)
    if mirrored_values or tf.distribute.get_strategy().num_replicas_in_sync > 1:
        raise UsageError(
            "Expected a MetaLearner and its model outside of strategy.scope(), got one inside: "
            "Keras's strategies would train it wrongly. Make both without a strategy, and call "
            "learner.distribute(amaml_tf.distribution.mirrored()) or "
            "learner.distribute(amaml_tf.distribution.multi_worker())."
        )


def _require_cluster() -> None:
    """Raises UsageError unless `TF_CONFIG` has workers, and this process is one of them."""
    text = os.environ.get("TF_CONFIG", "")
    try:
        config = json.loads(text)
        jobs, task = config["cluster"], config["task"]
        kind, index = task["type"], int(task["index"])
        fine = kind in ("chief", "worker") and 0 <= index < len(jobs[kind])
        fine = fine and not set(jobs) - {"chief", "worker"}
    except (ValueError, KeyError, TypeError):
        fine = False
    if not fine:
        raise UsageError(
            f"Expected the environment variable TF_CONFIG as {_EXAMPLE}, with tasks of the types "
            f"worker and chief alone, got {text or 'nothing'!r:.300}; set it for each worker, or "
            "pass --distribution=none."
        )
