"""An experiment: its settings, and what they stand for."""

from amaml_tf.experiment.experiment import Experiment as Experiment
from amaml_tf.experiment.workdir import CONFIG_FILE as CONFIG_FILE
