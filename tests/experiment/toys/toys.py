"""A laboratory with a solver, an algorithm and a family of its own: a line for each."""

import dataclasses

import toy_algorithm as toy_algorithm
import toy_family as toy_family
import toy_solver as toy_solver

import amaml_tf as amaml
from amaml_tf.commands import train
from amaml_tf.experiment.declaration import ON_RESUMING, setting


@dataclasses.dataclass(frozen=True, kw_only=True)
class ToyExperiment(amaml.Experiment):
    """The settings of the library, and a line for each new argument."""

    position: float | None = setting("Where f is evaluated.", of="solver", above=0)
    floor: float | None = setting("Shortest gradient.", of="algorithm", above=0)
    max_slope: float | None = setting("Of the lines.", of="task", least=0, may_change=ON_RESUMING)


if __name__ == "__main__":
    train.run(ToyExperiment)
