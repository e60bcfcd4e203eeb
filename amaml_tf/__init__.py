"""Adjoint MAML for TensorFlow: learn an initialization by long gradient flows.

In short:

    import amaml_tf as amaml

    flow = amaml.GradientFlow(final_time=5.0)
    learner = amaml.MetaLearner(model, algorithm=amaml.algorithms.AdjointMAML(flow))
    learner.compile(optimizer="adam", loss="mse")
    learner.fit(episodes)
    adapted_model = learner.adapt((support_x, support_y))

What this file names is public, and so is what the `__init__.py` of `algorithms`, `models`,
`solvers` and `tasks` names. Everything else may change without notice.
"""

from amaml_tf import algorithms as algorithms
from amaml_tf import models as models
from amaml_tf import solvers as solvers
from amaml_tf import tasks as tasks
from amaml_tf.errors import AdaptationError as AdaptationError
from amaml_tf.errors import UsageError as UsageError
from amaml_tf.evaluation import Estimate as Estimate
from amaml_tf.evaluation import Evaluation as Evaluation
from amaml_tf.evaluation import Evaluator as Evaluator
from amaml_tf.evaluation import evaluate as evaluate
from amaml_tf.experiment import Experiment as Experiment
from amaml_tf.flow.adaptation import adapt as adapt
from amaml_tf.flow.gradient_flow import GradientFlow as GradientFlow
from amaml_tf.functional.model import FunctionalModel as FunctionalModel
from amaml_tf.learner.meta_learner import MetaLearner as MetaLearner
from amaml_tf.saved_model import load_initialization as load_initialization
from amaml_tf.saved_model import save_initialization as save_initialization
from amaml_tf.training import train as train

__version__ = "0.1.0"
