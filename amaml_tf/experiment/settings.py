"""The settings of an experiment: those of tasks, model, algorithm and training."""

from __future__ import annotations

import dataclasses

from amaml_tf import algorithms, solvers, tasks
from amaml_tf.algorithms.learned_flow import LEARNED_RATES
from amaml_tf.experiment.declaration import IN_EVALUATION, ON_RESUMING, setting
from amaml_tf.experiment.evaluation_settings import MOST_SEED, EvaluationSettings
from amaml_tf.experiment.model_settings import ModelSettings
from amaml_tf.experiment.safeguards import MOST_META_STEPS, Safeguards
from amaml_tf.experiment.solver_settings import SolverSettings
from amaml_tf.flow.gradient_flow import ADJOINTS
from amaml_tf.functional import execution
from amaml_tf.learner.meta_learner import ON_FAILURE
from amaml_tf.solvers.method import MOST_STEPS
from amaml_tf.tasks.functions.paper_functions import VARIANTS


def _adjoint_solvers() -> list[str]:
    return [name for name, made in solvers.REGISTRY.items() if made is not solvers.BDF]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings(EvaluationSettings, ModelSettings, SolverSettings, Safeguards):
    """Everything that decides how a training run goes, and how it is evaluated, as plain values.

    Each field is a flag of the commands. None leaves a setting to the default of the class that it
    is for. A setting that is given, but that the chosen task, model, solver or algorithm does not
    have, is an error.

    Raises:
        UsageError: a value is not of its setting's type or out of its range, or two settings
            exclude each other.
    """

    task: str = setting("Family of tasks.", "sinusoid", choices=lambda: tasks.REGISTRY)
    data_dir: str | None = setting(
        "Folder (or file) that holds the data of the tasks.", may_change=ON_RESUMING
    )
    download: bool | None = setting(
        "Download the data set if data_dir does not hold it.", of="task", may_change=ON_RESUMING
    )
    num_ways: int | tuple[int, int] | None = setting(
        "Classes of a classification task, or a range: 5-20.", of="task", least=1
    )
    num_support: int | tuple[int, int] | None = setting(
        "Support examples of a task (classification: of each class), or a range: 1-10.",
        of="task",
        least=1,
    )
    num_query: int | tuple[int, int] | None = setting(
        "Query examples of a task (classification: of each class), or a range.", of="task", least=1
    )
    num_test_support: int | tuple[int, int] | None = setting(
        "num_support of validation and test tasks.",
        of="task",
        least=1,
        may_change=IN_EVALUATION,
    )
    num_test_query: int | tuple[int, int] | None = setting(
        "num_query of validation and test tasks.", of="task", least=1, may_change=IN_EVALUATION
    )
    dimension: int | None = setting("Coordinates of x.", of="task", least=1)
    num_tasks: int | None = setting("Tasks in each split.", of="task", least=1)
    task_seed: int | None = setting(
        "Which tasks of a synthetic family.", of="task", least=0, most=MOST_SEED
    )
    variant: str | None = setting(
        "Whose definition of the functions.", of="task", choices=lambda: VARIANTS
    )
    dataset: str | None = setting(
        "Name of the data set, such as cifar100.", of="task", argument="name"
    )
    image_size: int | None = setting("Height and width of images.", of="task", least=1, most=4096)
    channels: int | None = setting("1 (grey) or 3 (RGB).", of="task", least=1)
    class_split_file: str | None = setting(
        "JSON file that divides the classes into splits.", of="task"
    )
    split_seed: int | None = setting(
        "Which random division of classes or users.", of="task", least=0, most=MOST_SEED
    )
    max_corrupt: int | None = setting(
        "Corrupt rows or images that may be left out of the data. Each is logged. Default: 0.",
        of="task",
        least=0,
        may_change=ON_RESUMING,
    )
    vocabulary_size: int | None = setting(
        "Tokens of the texts, which are numbers below this.", of="task", least=2
    )
    sequence_length: int | None = setting("Tokens of a text.", of="task", least=1)
    num_themes: int | None = setting("Themes that topics are mixtures of.", of="task", least=1)
    num_factors: int | None = setting(
        "Latent factors among an item's features.", of="task", least=1
    )
    dtype: str = setting("Of tasks and model.", "float32", choices=lambda: ("float32", "float64"))

    batch_statistics: bool = setting(
        "Batch normalization uses the statistics of the batch at hand, not stored ones.", True
    )

    algorithm: str = setting("Meta-learner.", "adjoint_maml", choices=lambda: algorithms.REGISTRY)
    final_time: float | None = setting(
        "T, how long to adapt to a task: inner learning rate times inner steps.",
        of="flow",
        above=0,
        may_change=IN_EVALUATION,
    )
    solver: str | None = setting(
        "ODE solver. Default: runge_kutta_chebyshev.",
        of="flow",
        choices=lambda: solvers.REGISTRY,
        may_change=IN_EVALUATION,
    )
    num_steps: int | None = setting(
        "Inner steps of algorithms without an ODE solver.",
        of="algorithm",
        least=1,
        most=MOST_STEPS,
        may_change=IN_EVALUATION,
    )
    adjoint: str | None = setting(
        "How the meta-gradient is computed.",
        of="flow",
        choices=lambda: ADJOINTS,
        may_change=IN_EVALUATION,
    )
    adjoint_solver: str | None = setting(
        "Solver of the adjoint ODE of --adjoint=continuous. Default: that of the flow.",
        of="flow",
        choices=_adjoint_solvers,
        may_change=IN_EVALUATION,
    )
    max_checkpoints: int | None = setting(
        "States that the inner run keeps in memory. Default: see GradientFlow.",
        of="flow",
        least=2,
        most=2**24,
        may_change=ON_RESUMING,
    )
    memory_budget: float | None = setting(
        "The same in MiB, in place of --max_checkpoints.",
        of="flow",
        above=0,
        may_change=ON_RESUMING,
    )
    adapted_layers: tuple[str, ...] | None = setting(
        "Names of the layers that adaptation changes. Default: all.", of="algorithm"
    )
    learn_final_time: bool | None = setting("Learn T, from final_time on.", of="algorithm")
    max_final_time: float | None = setting(
        "How far a learned T may grow. Default: any.", of="algorithm", above=0
    )
    shortest_time: float | None = setting(
        "Spread the training tasks' times from here to final_time.", of="algorithm", above=0
    )
    learned_rates: str | None = setting(
        "Learn inner rates.", of="algorithm", choices=lambda: LEARNED_RATES
    )
    proximal_weight: float | None = setting(
        "Weight of the pull to the initialization.",
        of="flow",
        least=0,
        may_change=IN_EVALUATION,
    )
    num_cg_steps: int | None = setting(
        "Most steps of conjugate gradients of a meta-gradient.", of="algorithm", least=1
    )
    cg_damping: float | None = setting(
        "Added to proximal_weight in the meta-gradient.", of="algorithm", least=0
    )
    on_failure: str | None = setting(
        "If the adaptation of a task fails: raise (stop) or drop (leave the task out).",
        choices=lambda: ON_FAILURE,
        may_change=ON_RESUMING,
    )

    seed: int = setting(
        "Of the first weights and of the stream of episodes.", 0, least=0, most=MOST_SEED
    )
    num_meta_steps: int = setting(
        "Meta-updates to train for.", 1000, least=1, most=MOST_META_STEPS, may_change=ON_RESUMING
    )
    meta_batch_size: int = setting("Tasks in a meta-update.", 5, least=1)
    optimizer: str = setting("Name of the Keras optimizer of the meta-updates.", "adam")
    meta_learning_rate: float = setting("Learning rate of the meta-updates.", 1e-3, above=0)
    decay_steps: int | None = setting(
        "Meta-steps in which the rate falls to 0 on a cosine.", above=0, most=MOST_META_STEPS
    )
    clip_norm: float | None = setting("Largest norm of a meta-gradient. Default: any.", above=0)
    task_clip_norm: float | None = setting(
        "Largest norm of one task's meta-gradient. Default: any.", above=0
    )
    vectorize: str = setting(
        "Tasks of a batch as one vectorised program.",
        "auto",
        choices=lambda: execution.MODES,
        may_change=ON_RESUMING,
    )
    jit_compile: str = setting(
        "Compile the meta-step with XLA.",
        "auto",
        choices=lambda: execution.MODES,
        may_change=ON_RESUMING,
    )
    log_every: int = setting(
        "Meta-steps between two entries of the logs.",
        100,
        least=1,
        most=MOST_META_STEPS,
        may_change=ON_RESUMING,
    )
