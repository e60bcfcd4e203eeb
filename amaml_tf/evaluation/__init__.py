"""The evaluation protocol: unseen episodes, before and after adaptation, with intervals."""

from amaml_tf.evaluation.protocol import Evaluator as Evaluator
from amaml_tf.evaluation.protocol import evaluate as evaluate
from amaml_tf.evaluation.results import EVALUATION_FILE as EVALUATION_FILE
from amaml_tf.evaluation.results import CurvePoint as CurvePoint
from amaml_tf.evaluation.results import Evaluation as Evaluation
from amaml_tf.evaluation.statistics import Estimate as Estimate
