"""The networks that the papers use and examples of larger ones, built from Keras layers.

Any Keras model can be used in their place. The file of a network registers it in `REGISTRY`, and
one line here imports it.
"""

from amaml_tf.models.convolutional import DOWNSAMPLINGS as DOWNSAMPLINGS
from amaml_tf.models.convolutional import convolutional_network as convolutional_network
from amaml_tf.models.dense import multilayer_perceptron as multilayer_perceptron
from amaml_tf.models.mobilenet import mobilenet_v3_small as mobilenet_v3_small
from amaml_tf.models.registry import REGISTRY as REGISTRY
from amaml_tf.models.resnet12 import resnet12 as resnet12
from amaml_tf.models.transformer import transformer as transformer
