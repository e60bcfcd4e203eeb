"""Meta-learning algorithms, behind one interface."""

from collections.abc import Callable

from amaml_tf.algorithms.adjoint_maml import AdjointMAML
from amaml_tf.algorithms.base import Algorithm, MetaDiagnostics, MetaGradients
from amaml_tf.algorithms.first_order_maml import FirstOrderMAML
from amaml_tf.algorithms.maml import MAML
from amaml_tf.algorithms.reptile import Reptile

#: By the names that commands know them by.
REGISTRY: dict[str, Callable[..., Algorithm]] = {
    "adjoint_maml": AdjointMAML,
    "first_order_maml": FirstOrderMAML,
    "maml": MAML,
    "reptile": Reptile,
}

__all__ = [
    "MAML",
    "REGISTRY",
    "AdjointMAML",
    "Algorithm",
    "FirstOrderMAML",
    "MetaDiagnostics",
    "MetaGradients",
    "Reptile",
]
