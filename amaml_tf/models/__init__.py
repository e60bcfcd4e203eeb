"""The small networks that the papers use, built from Keras layers.

Any Keras model can be used in their place. The file of a network registers it in `REGISTRY`, and
one line here imports it.
"""

from amaml_tf.models.convolutional import DOWNSAMPLINGS as DOWNSAMPLINGS
from amaml_tf.models.convolutional import convolutional_network as convolutional_network
from amaml_tf.models.dense import multilayer_perceptron as multilayer_perceptron
from amaml_tf.models.registry import REGISTRY as REGISTRY
