"""The registry of models, by the names that flags use."""

import keras

from amaml_tf.registry import Registry

#: Functions of (input_shape, num_outputs, ...) that return a built Keras model, by the names that
#: flags use.
REGISTRY: Registry[keras.Model] = Registry("model")
