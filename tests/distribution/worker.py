"""amaml-train in a process of its own, on logical CPUs: `worker.py DEVICES PAUSE FLAGS...`."""

import os
import sys
import time

os.environ.setdefault("XLA_FLAGS", "--xla_backend_optimization_level=0")

import keras
import tensorflow as tf

NUM_DEVICES, PAUSE = int(sys.argv.pop(1)), float(sys.argv.pop(1))

if NUM_DEVICES > 1:
    tf.config.set_logical_device_configuration(
        tf.config.list_physical_devices("CPU")[0],
        [tf.config.LogicalDeviceConfiguration()] * NUM_DEVICES,
    )

from amaml_tf.commands import train  # noqa: E402


class Pause(keras.callbacks.Callback):
    """Makes meta-steps slow enough to be interrupted, and tells which is done."""

    def on_train_batch_end(self, batch, logs=None):
        print(f"did {int(self.model.optimizer.iterations)}", file=sys.stderr, flush=True)
        time.sleep(PAUSE)


if PAUSE:
    fit = keras.Model.fit

    def slow_fit(self, *args, **options):
        return fit(self, *args, **options | {"callbacks": [*options["callbacks"], Pause()]})

    keras.Model.fit = slow_fit

train.run()
