"""The training loop, its checkpoints and its logs."""

from amaml_tf.training.checkpoint_files import CHECKPOINT_FOLDER as CHECKPOINT_FOLDER
from amaml_tf.training.checkpoints import Checkpoints as Checkpoints
from amaml_tf.training.checkpoints import has_checkpoint as has_checkpoint
from amaml_tf.training.checkpoints import require_checkpoint as require_checkpoint
from amaml_tf.training.checkpoints import restore as restore
from amaml_tf.training.dropped import DROPPED_FILE as DROPPED_FILE
from amaml_tf.training.lock import locked as locked
from amaml_tf.training.logs import LOG_FILE as LOG_FILE
from amaml_tf.training.loop import train as train
from amaml_tf.training.skipping import skipping as skipping
from amaml_tf.training.tensorboard import TENSORBOARD_FOLDER as TENSORBOARD_FOLDER
from amaml_tf.training.validation import VALIDATION_FILE as VALIDATION_FILE
