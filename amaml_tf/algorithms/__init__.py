"""Meta-learning algorithms, all with the same interface.

Each algorithm's file registers it in `REGISTRY`, and one line here imports it.
"""

from amaml_tf.algorithms.adjoint_maml import AdjointMAML as AdjointMAML
from amaml_tf.algorithms.anil import ANIL as ANIL
from amaml_tf.algorithms.base import REGISTRY as REGISTRY
from amaml_tf.algorithms.base import Algorithm as Algorithm
from amaml_tf.algorithms.base import MetaDiagnostics as MetaDiagnostics
from amaml_tf.algorithms.base import MetaGradients as MetaGradients
from amaml_tf.algorithms.first_order_maml import FirstOrderMAML as FirstOrderMAML
from amaml_tf.algorithms.flow_based import FlowBased as FlowBased
from amaml_tf.algorithms.from_scratch import FromScratch as FromScratch
from amaml_tf.algorithms.implicit_maml import ImplicitMAML as ImplicitMAML
from amaml_tf.algorithms.joint_training import JointTraining as JointTraining
from amaml_tf.algorithms.maml import MAML as MAML
from amaml_tf.algorithms.meta_sgd import MetaSGD as MetaSGD
from amaml_tf.algorithms.reptile import Reptile as Reptile
