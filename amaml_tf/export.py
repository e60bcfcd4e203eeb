"""`amaml-export`: writes the initialization that a run has learned as a SavedModel.

    amaml-export --workdir=runs/sinusoid --export_dir=exports/sinusoid

The settings are those of the run; flags change how the export adapts, such as --final_time or
--solver.
"""

from absl import flags

from amaml_tf import commands
from amaml_tf.saved_model import save_initialization
from amaml_tf.training import require_checkpoint, restore

_EXPORT_DIR = flags.DEFINE_string(
    "export_dir", None, "Folder of the exported versions. Default: export in --workdir."
)
_VERSION = flags.DEFINE_integer(
    "version", None, "Number of the version to write. Default: one above the highest there."
)


def main() -> None:
    """Exports the newest checkpoint of a run."""
    experiment, workdir = commands.trained_experiment(), commands.workdir()
    require_checkpoint(workdir)  # before the data, which can take a while
    learner = experiment.make_learner(experiment.make_family())
    step = restore(learner, workdir)
    written = save_initialization(learner, _EXPORT_DIR.value or workdir / "export", _VERSION.value)
    print(f"Initialization after meta-step {step} written to {written}.")


def run() -> None:
    """Entry point of the console command."""
    commands.run(main)


if __name__ == "__main__":
    run()
