"""Settings of the whole test run."""

import os

import pytest
from absl import flags
from absl.testing import flagsaver

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
os.environ.setdefault("KERAS_BACKEND", "tensorflow")
# Tests compile much and run little.
os.environ.setdefault("XLA_FLAGS", "--xla_backend_optimization_level=0")


@pytest.fixture
def new_flags():
    """Flags as before a command parses its arguments."""
    with flagsaver.flagsaver():
        flags.FLAGS.unparse_flags()
        yield flags.FLAGS
