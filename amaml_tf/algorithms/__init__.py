"""Meta-learning algorithms, behind one interface."""

from amaml_tf.algorithms.adjoint_maml import AdjointMAML
from amaml_tf.algorithms.base import Algorithm, MetaDiagnostics, MetaGradients

__all__ = ["AdjointMAML", "Algorithm", "MetaDiagnostics", "MetaGradients"]
