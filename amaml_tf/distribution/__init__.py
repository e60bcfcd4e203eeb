"""Training on several devices and machines, on TensorFlow's own strategies."""

from amaml_tf.distribution.cluster import DISTRIBUTIONS as DISTRIBUTIONS
from amaml_tf.distribution.cluster import mirrored as mirrored
from amaml_tf.distribution.cluster import multi_worker as multi_worker
from amaml_tf.distribution.cluster import refuse_strategies as refuse_strategies
from amaml_tf.distribution.cluster import replicas_of as replicas_of
from amaml_tf.distribution.replicas import Replicas as Replicas
