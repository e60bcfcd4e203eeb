"""`amaml-export`: writes the initialization that a run has learned as a SavedModel.

    amaml-export --workdir=runs/sinusoid --export_dir=exports/sinusoid

The settings are those of the run; flags change how the export adapts, such as --final_time or
--solver.
"""

from __future__ import annotations

from absl.flags import DEFINE_integer, DEFINE_string

from amaml_tf.commands import flags, running
from amaml_tf.commands.outputs import export_folder
from amaml_tf.experiment import Experiment
from amaml_tf.saved_model import save_initialization
from amaml_tf.training import require_checkpoint, restore

_EXPORT_DIR = DEFINE_string(
    "export_dir", None, "Folder of the exported versions. Default: export in --workdir."
)
_VERSION = DEFINE_integer(
    "version", None, "Number of the version to write. Default: one above the highest there."
)


def main(kind: type[Experiment] = Experiment) -> None:
    """Exports the newest checkpoint of a run."""
    experiment, workdir = flags.trained_experiment(kind), flags.workdir()
    folder = export_folder(_EXPORT_DIR.value or str(workdir / "export"), workdir)
    require_checkpoint(workdir)  # before the data, which can take a while
    learner = experiment.make_learner(experiment.make_family())
    step = restore(learner, workdir)
    written = save_initialization(learner, folder, _VERSION.value)
    print(f"Initialization after meta-step {step} written to {written}.")


def run(kind: type[Experiment] = Experiment) -> None:
    """Entry point of the console command."""
    running.run(main, kind)
