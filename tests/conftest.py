"""Settings of the whole test run."""

import os
import pathlib

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


@pytest.fixture(scope="session")
def omniglot_dir() -> str:
    """The `tensorflow_datasets` folder of the environment, if it holds Omniglot."""
    folder = os.environ.get("AMAML_DATA_DIR", "")
    if not folder or not (pathlib.Path(folder) / "omniglot").is_dir():
        pytest.skip("set AMAML_DATA_DIR to a tensorflow_datasets folder with Omniglot")
    return folder
