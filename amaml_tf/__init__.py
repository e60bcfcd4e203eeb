"""Adjoint MAML for TensorFlow: learn an initialization by long gradient flows.

In short:

    import amaml_tf as amaml

    flow = amaml.GradientFlow(final_time=5.0)
    learner = amaml.MetaLearner(model, algorithm=amaml.algorithms.AdjointMAML(flow))
    learner.compile(optimizer="adam", loss="mse")
    learner.fit(episodes)
    adapted_model = learner.adapt((support_x, support_y))
"""

from amaml_tf import algorithms, models, solvers, tasks
from amaml_tf.adaptation import adapt
from amaml_tf.failure import AdaptationError
from amaml_tf.functional import FunctionalModel
from amaml_tf.gradient_flow import GradientFlow
from amaml_tf.meta_learner import MetaLearner
from amaml_tf.saved_model import load_initialization, save_initialization

__version__ = "0.1.0"

__all__ = [
    "AdaptationError",
    "FunctionalModel",
    "GradientFlow",
    "MetaLearner",
    "adapt",
    "algorithms",
    "load_initialization",
    "models",
    "save_initialization",
    "solvers",
    "tasks",
]
