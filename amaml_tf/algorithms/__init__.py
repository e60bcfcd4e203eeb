"""Meta-learning algorithms, behind one interface."""

from collections.abc import Callable

from amaml_tf.algorithms.adjoint_maml import AdjointMAML
from amaml_tf.algorithms.anil import ANIL
from amaml_tf.algorithms.base import Algorithm, MetaDiagnostics, MetaGradients
from amaml_tf.algorithms.first_order_maml import FirstOrderMAML
from amaml_tf.algorithms.from_scratch import FromScratch
from amaml_tf.algorithms.implicit_maml import ImplicitMAML
from amaml_tf.algorithms.joint_training import JointTraining
from amaml_tf.algorithms.maml import MAML
from amaml_tf.algorithms.meta_sgd import MetaSGD
from amaml_tf.algorithms.reptile import Reptile

#: By the names that commands know them by.
REGISTRY: dict[str, Callable[..., Algorithm]] = {
    "adjoint_maml": AdjointMAML,
    "anil": ANIL,
    "first_order_maml": FirstOrderMAML,
    "from_scratch": FromScratch,
    "implicit_maml": ImplicitMAML,
    "joint_training": JointTraining,
    "maml": MAML,
    "meta_sgd": MetaSGD,
    "reptile": Reptile,
}

__all__ = [
    "ANIL",
    "MAML",
    "REGISTRY",
    "AdjointMAML",
    "Algorithm",
    "FirstOrderMAML",
    "FromScratch",
    "ImplicitMAML",
    "JointTraining",
    "MetaDiagnostics",
    "MetaGradients",
    "MetaSGD",
    "Reptile",
]
