"""The settings of a training run, by name, and what they stand for: tasks, model, learner."""

from __future__ import annotations

import dataclasses
import functools
import inspect
import json
import os
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import keras

from amaml_tf import algorithms, models, solvers, tasks
from amaml_tf.evaluation import Evaluation, Evaluator
from amaml_tf.files import write_atomically
from amaml_tf.fine_tuning import require_elementwise
from amaml_tf.gradient_flow import GradientFlow
from amaml_tf.meta_learner import MetaLearner
from amaml_tf.training import has_checkpoint

CONFIG_FILE = "config.json"

MODELS: dict[str, Callable[..., keras.Model]] = {
    "mlp": models.multilayer_perceptron,
    "cnn": models.convolutional_network,
}
SOLVERS: dict[str, Callable[..., Any]] = {
    "gradient_descent": solvers.GradientDescent,
    "heun": solvers.Heun,
    "runge_kutta4": solvers.RungeKutta4,
    "runge_kutta_chebyshev": solvers.RungeKuttaChebyshev,
    "dormand_prince": solvers.DormandPrince,
    "bdf": solvers.BDF,
}
_ADJOINT_SOLVERS = {name: made for name, made in SOLVERS.items() if made is not solvers.BDF}

_TASK_SETTINGS = (
    "num_ways",
    "num_support",
    "num_query",
    "num_test_support",
    "num_test_query",
    "dimension",
    "num_tasks",
    "task_seed",
    "variant",
    "dataset",
    "image_size",
    "channels",
    "class_split_file",
    "split_seed",
    "num_factors",
    "download",
)
_MODEL_SETTINGS = (
    "hidden_units",
    "activation",
    "filters",
    "num_blocks",
    "downsampling",
    "batch_normalization",
)
_SOLVER_SETTINGS = ("step_size", "rtol", "atol", "max_num_steps")
_FLOW_SETTINGS = (
    "final_time",
    "adjoint",
    "max_checkpoints",
    "learn_final_time",
    "max_final_time",
    "learned_rates",
    "proximal_weight",
    "on_failure",
)
_ALGORITHM_SETTINGS = (
    "num_steps",
    "adapted_layers",
    "shortest_time",
    "num_cg_steps",
    "cg_damping",
)

# Where a class's argument goes by another name, because the setting stands alone.
_ARGUMENT_OF = {"dataset": "name"}
_SETTING_OF = {argument: setting for setting, argument in _ARGUMENT_OF.items()}

_LEAST = {
    "num_meta_steps": 1,
    "meta_batch_size": 1,
    "log_every": 1,
    "checkpoint_every": 1,
    "num_eval_episodes": 2,  # an interval needs two
    "eval_batch_size": 1,
}
_CHOICES = {"dtype": ("float32", "float64"), "eval_split": ("test", "validation")}

# A run may go on with other values of these: they say how, how long and where, not what. A cap on
# the steps, and what follows a failure, change nothing in the steps that a run has taken.
MAY_CHANGE_ON_RESUMING = frozenset(
    {
        "num_meta_steps",
        "log_every",
        "checkpoint_every",
        "data_dir",
        "download",
        "vectorize",
        "jit_compile",
        "max_num_steps",
        "max_checkpoints",
        "on_failure",
        "num_eval_episodes",
        "eval_batch_size",
        "eval_seed",
        "eval_split",
        "eval_optimizer",
        "eval_learning_rate",
        "eval_weight_decay",
        "eval_steps",
        "eval_all_layers",
        "eval_times",
    }
)
# A learned initialization may be evaluated with another inner run, and on tasks of other sizes.
MAY_CHANGE_IN_EVALUATION = MAY_CHANGE_ON_RESUMING | {
    "final_time",
    "solver",
    "adjoint",
    "adjoint_solver",
    "step_size",
    "num_steps",
    "rtol",
    "atol",
    "proximal_weight",
    "num_test_support",
    "num_test_query",
}


def _setting(default: Any, meaning: str) -> Any:
    return dataclasses.field(default=default, metadata={"meaning": meaning})


@dataclasses.dataclass(frozen=True, kw_only=True)
class Experiment:
    """Everything that decides how a training run goes, as plain values.

    Each field is a flag of the commands; its meaning stands beside it. None leaves a setting to
    the default of the class that it is for. A setting that is given, but that the chosen task,
    model, solver or algorithm does not have, is an error.

    Raises:
        ValueError: a number is out of its range.
    """

    task: str = _setting("sinusoid", f"Family of tasks: {', '.join(tasks.REGISTRY)}.")
    data_dir: str | None = _setting(None, "Folder (or file) that holds the data of the tasks.")
    download: bool | None = _setting(None, "Download the data set if data_dir does not hold it.")
    num_ways: int | None = _setting(None, "Classes of a classification task.")
    num_support: int | None = _setting(
        None, "Support examples of a task (classification: of each class)."
    )
    num_query: int | None = _setting(
        None, "Query examples of a task (classification: of each class)."
    )
    num_test_support: int | None = _setting(None, "num_support of validation and test tasks.")
    num_test_query: int | None = _setting(None, "num_query of validation and test tasks.")
    dimension: int | None = _setting(None, "Coordinates of x in cosmixture and alpine.")
    num_tasks: int | None = _setting(None, "Tasks in each split of cosmixture and alpine.")
    task_seed: int | None = _setting(None, "Which tasks of a synthetic family.")
    variant: str | None = _setting(None, "cosmixture and alpine: paper or program.")
    dataset: str | None = _setting(None, "tfds: name of the data set, such as cifar100.")
    image_size: int | None = _setting(None, "tfds and image_folder: height and width of images.")
    channels: int | None = _setting(None, "tfds and image_folder: 1 (grey) or 3 (RGB).")
    class_split_file: str | None = _setting(
        None, "tfds and image_folder: JSON file that divides the classes into splits."
    )
    split_seed: int | None = _setting(None, "Which random division of classes or users.")
    num_factors: int | None = _setting(None, "Ratings: latent factors among an item's features.")
    dtype: str = _setting("float32", "float32 or float64, of tasks and model.")

    model: str | None = _setting(
        None, f"Network: {', '.join(MODELS)}. Default: cnn for images, else mlp."
    )
    hidden_units: tuple[int, ...] | None = _setting(None, "mlp: width of each hidden layer.")
    activation: str | None = _setting(None, "mlp: activation of the hidden layers.")
    filters: int | None = _setting(None, "cnn: channels of every convolution.")
    num_blocks: int | None = _setting(None, "cnn: number of convolutions.")
    downsampling: str | None = _setting(None, "cnn: stride or max_pool.")
    batch_normalization: bool | None = _setting(None, "cnn: normalize before the ReLU.")
    batch_statistics: bool = _setting(
        True, "Batch normalization uses the statistics of the batch at hand, not stored ones."
    )

    algorithm: str = _setting("adjoint_maml", f"Meta-learner: {', '.join(algorithms.REGISTRY)}.")
    final_time: float | None = _setting(
        None, "T, how long to adapt to a task: inner learning rate times inner steps."
    )
    solver: str | None = _setting(
        None, f"ODE solver: {', '.join(SOLVERS)}. Default: runge_kutta_chebyshev."
    )
    step_size: float | None = _setting(None, "Step of a fixed-step solver, or inner learning rate.")
    num_steps: int | None = _setting(None, "Inner steps of algorithms without an ODE solver.")
    rtol: float | None = _setting(None, "Relative tolerance of an adaptive solver.")
    atol: float | None = _setting(None, "Absolute tolerance of an adaptive solver.")
    max_num_steps: int | None = _setting(None, "Cap on the solver's steps.")
    adjoint: str | None = _setting(None, "Meta-gradient: discrete, continuous or backsolve.")
    adjoint_solver: str | None = _setting(
        None, "Solver of the adjoint ODE of --adjoint=continuous. Default: that of the flow."
    )
    max_checkpoints: int | None = _setting(
        None, "States that a buffer of the inner run holds, a power of two. Default: 128 MiB."
    )
    adapted_layers: tuple[str, ...] | None = _setting(
        None, "Names of the layers that adaptation changes. Default: all."
    )
    learn_final_time: bool | None = _setting(None, "Learn T, from final_time on.")
    max_final_time: float | None = _setting(None, "How far a learned T may grow. Default: any.")
    shortest_time: float | None = _setting(
        None, "adjoint_maml: spread the training tasks' times from here to final_time."
    )
    learned_rates: str | None = _setting(None, "Learn inner rates: none, tensor or entry.")
    proximal_weight: float | None = _setting(None, "Weight of the pull to the initialization.")
    num_cg_steps: int | None = _setting(
        None, "implicit_maml: most steps of conjugate gradients for a meta-gradient."
    )
    cg_damping: float | None = _setting(
        None, "implicit_maml: added to proximal_weight in the meta-gradient."
    )
    on_failure: str | None = _setting(
        None, "If a task's flow fails: raise (stop) or drop (leave the task out)."
    )

    seed: int = _setting(0, "Of the first weights and of the stream of episodes.")
    num_meta_steps: int = _setting(1000, "Meta-updates to train for.")
    meta_batch_size: int = _setting(5, "Tasks in a meta-update.")
    optimizer: str = _setting("adam", "Name of the Keras optimizer of the meta-updates.")
    meta_learning_rate: float = _setting(1e-3, "Learning rate of the meta-updates.")
    decay_steps: int | None = _setting(
        None, "Meta-steps over which the rate falls to 0 along a cosine. Default: it stays."
    )
    clip_norm: float | None = _setting(None, "Largest norm of a meta-gradient. Default: any.")
    task_clip_norm: float | None = _setting(
        None, "Largest norm of one task's meta-gradient. Default: any."
    )
    vectorize: str = _setting("auto", "Tasks of a batch as one vectorised program: auto, on, off.")
    jit_compile: str = _setting("auto", "Compile the meta-step with XLA: auto, on, off.")
    log_every: int = _setting(100, "Meta-steps between two entries of the logs.")
    checkpoint_every: int = _setting(500, "Meta-steps between two checkpoints.")

    num_eval_episodes: int = _setting(600, "Unseen episodes to evaluate on.")
    eval_batch_size: int = _setting(20, "Episodes to evaluate at a time.")
    eval_seed: int = _setting(0, "Which unseen episodes.")
    eval_split: str = _setting("test", "Whose episodes: test or validation.")
    eval_optimizer: str | None = _setting(
        None, "Name of a Keras optimizer to adapt by. Default: the algorithm's own inner run."
    )
    eval_learning_rate: float | None = _setting(None, "Learning rate of --eval_optimizer.")
    eval_weight_decay: float | None = _setting(None, "Weight decay of --eval_optimizer.")
    eval_steps: tuple[int, ...] | None = _setting(
        None, "Numbers of steps of --eval_optimizer to measure at: 10,100,1000."
    )
    eval_all_layers: bool | None = _setting(
        None, "--eval_optimizer trains all layers, not only those that the algorithm adapts."
    )
    eval_times: tuple[float, ...] | None = _setting(
        None, "Times of the inner run to measure at: 0.5,5. The last stands for --final_time."
    )

    def __post_init__(self) -> None:
        for name, least in _LEAST.items():
            if getattr(self, name) < least:
                raise ValueError(
                    f"Expected {name} to be {least} or more, got {getattr(self, name)}; pass a "
                    "larger number."
                )
        for name in (
            "meta_learning_rate",
            "decay_steps",
            "clip_norm",
            "task_clip_norm",
            "eval_learning_rate",
        ):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise ValueError(
                    f"Expected {name} to be above 0, got {value}; pass a positive number."
                )
        for name, choices in _CHOICES.items():
            _chosen(name, getattr(self, name), dict.fromkeys(choices))
        self._check_evaluation()

    def _check_evaluation(self) -> None:
        for name in ("eval_steps", "eval_times"):
            values = getattr(self, name)
            if values and not (min(values) >= 0 and max(values) > 0):
                raise ValueError(
                    f"Expected {name} of 0 or more, one of them above 0, got {_text(values)}; pass "
                    "other numbers."
                )
        if self.eval_weight_decay is not None and not self.eval_weight_decay >= 0:
            raise ValueError(
                f"Expected eval_weight_decay of 0 or more, got {self.eval_weight_decay}; pass such."
            )
        if self.eval_optimizer is not None:
            if self.eval_times or not self.eval_steps:
                came = "eval_times" if self.eval_times else "none"
                raise ValueError(
                    f"Expected eval_steps with eval_optimizer={self.eval_optimizer}, got {came}; "
                    "pass something like --eval_steps=10,100,1000, and no --eval_times."
                )
            return
        for name in ("eval_steps", "eval_learning_rate", "eval_weight_decay", "eval_all_layers"):
            value = getattr(self, name)
            if value is not None and value != ():
                raise ValueError(
                    f"Expected an eval_optimizer with {name}={_text(value)}, got none; pass "
                    "--eval_optimizer=sgd for steps of gradient descent, or --eval_times for the "
                    "algorithm's own inner run (a step's time is its size)."
                )

    # -- what the settings stand for ------------------------------------------------------------

    def make_family(self) -> tasks.TaskFamily:
        """Returns the family of tasks, with its data loaded.

        Raises:
            ValueError: there is no such task, it lacks its data, or a setting does not fit it.
        """
        factory = _chosen("task", self.task, tasks.REGISTRY)
        given = self._given(_TASK_SETTINGS) | {"dtype": self.dtype}
        parameters = inspect.signature(factory).parameters
        if "dataset" in given:
            given[_ARGUMENT_OF["dataset"]] = given.pop("dataset")
        if "data_dir" in parameters:  # it says best itself if it needs one
            given["data_dir"] = self.data_dir
        return _made(f"task {self.task}", factory, given)

    def make_model(self, family: tasks.TaskFamily) -> keras.Model:
        """Returns a network for the inputs and outputs of `family`, with random first weights.

        Raises:
            ValueError: there is no such model, or a setting does not fit it.
        """
        name = self.model or ("cnn" if len(family.input_shape) == 3 else "mlp")
        if name == "cnn" and len(family.input_shape) != 3:
            raise ValueError(
                f"Expected images for model cnn, got inputs of shape {family.input_shape} from "
                f"task {self.task}; use --model=mlp."
            )
        if self.activation is not None:
            _of_keras("activation", self.activation, keras.activations.get)
        factory = _chosen("model", name, MODELS)
        fitted = functools.partial(factory, family.input_shape, family.num_outputs)
        given = self._given(_MODEL_SETTINGS) | {"dtype": self.dtype, "seed": self.seed}
        return _made(f"model {name}", fitted, given)

    def make_flow(self) -> GradientFlow:
        """Returns the inner training run.

        Raises:
            ValueError: there is no such solver, or a setting does not fit it.
        """
        chosen = {"solver": self.solver or "runge_kutta_chebyshev"}
        if self.adjoint_solver is not None:
            _chosen("adjoint_solver", self.adjoint_solver, _ADJOINT_SOLVERS)
            if self.adjoint != "continuous":
                raise ValueError(
                    f"Expected --adjoint=continuous beside --adjoint_solver={self.adjoint_solver}, "
                    f"got {self.adjoint or 'the default, discrete'}; pass it, or leave the adjoint "
                    "solver out."
                )
            chosen["adjoint_solver"] = self.adjoint_solver
        made = _made_solvers(chosen, self._given(_SOLVER_SETTINGS))
        return GradientFlow(**made, **self._given(_FLOW_SETTINGS))

    def make_algorithm(self) -> algorithms.Algorithm:
        """Returns the meta-learning algorithm.

        Raises:
            ValueError: there is no such algorithm or solver, or a setting does not fit it.
        """
        factory = _chosen("algorithm", self.algorithm, algorithms.REGISTRY)
        if "flow" in inspect.signature(factory).parameters:
            given = self._given(_ALGORITHM_SETTINGS) | {"flow": self.make_flow()}
        else:
            given = self._given(
                (
                    *_ALGORITHM_SETTINGS,
                    "solver",
                    "adjoint_solver",
                    *_SOLVER_SETTINGS,
                    *_FLOW_SETTINGS,
                )
            )
        return _made(f"algorithm {self.algorithm}", factory, given)

    def make_optimizer(self) -> keras.optimizers.Optimizer:
        """Returns the optimizer of the meta-updates.

        Raises:
            ValueError: Keras has no such optimizer.
        """
        rate: Any = self.meta_learning_rate
        if self.decay_steps is not None:
            rate = keras.optimizers.schedules.CosineDecay(rate, self.decay_steps)
        named = _of_keras("optimizer", self.optimizer, keras.optimizers.get)
        return type(named)(learning_rate=rate, global_clipnorm=self.clip_norm)

    def make_eval_optimizer(self) -> keras.optimizers.Optimizer | None:
        """Returns the optimizer to adapt by in evaluations; None: the algorithm's own inner run.

        Raises:
            ValueError: Keras has no such optimizer, or it does not leave tasks apart.
        """
        if self.eval_optimizer is None:
            return None
        named = _of_keras("eval_optimizer", self.eval_optimizer, keras.optimizers.get)
        require_elementwise(named)
        given = {"learning_rate": self.eval_learning_rate, "weight_decay": self.eval_weight_decay}
        return type(named)(**{name: value for name, value in given.items() if value is not None})

    def make_learner(self, family: tasks.TaskFamily) -> MetaLearner:
        """Returns a compiled learner of the initialization of a new model for `family`.

        Raises:
            ValueError: a setting is unknown or does not fit the others.
        """
        # First what is quick to say no.
        algorithm, optimizer = self.make_algorithm(), self.make_optimizer()
        self.make_eval_optimizer()  # not only after the training
        model = self.make_model(family)
        learner = MetaLearner(model, algorithm, batch_statistics=self.batch_statistics)
        learner.compile(
            optimizer=optimizer,
            loss=family.loss,
            metrics=family.metrics(),
            task_clip_norm=self.task_clip_norm,
            vectorize=self.vectorize,
            jit_compile=self.jit_compile,
        )
        return learner

    def make_evaluator(self, learner: MetaLearner, family: tasks.TaskFamily) -> Evaluator:
        """Returns what measures `learner`, compiled, on episodes of `family`.

        Raises:
            ValueError: as `amaml_tf.evaluation.evaluate`.
        """
        return Evaluator(
            learner,
            family.metrics(),
            times=self.eval_times or None,
            optimizer=self.make_eval_optimizer(),
            steps=self.eval_steps or None,
            all_layers=bool(self.eval_all_layers),
        )

    def evaluate(
        self,
        evaluator: Evaluator,
        family: tasks.TaskFamily,
        split: str | None = None,
        num_episodes: int | None = None,
    ) -> Evaluation:
        """Measures on unseen episodes of `family`, as the settings say.

        Args:
            evaluator: of `make_evaluator`; one can measure again and again.
            family: whose episodes.
            split: in place of `eval_split`.
            num_episodes: in place of `num_eval_episodes`.

        Raises:
            ValueError: as `amaml_tf.evaluation.evaluate`.
            AdaptationError: as `amaml_tf.evaluation.evaluate`.
        """
        split, seed = split or self.eval_split, self.eval_seed
        count = num_episodes or self.num_eval_episodes
        there_are = family.num_different_episodes(split)
        if there_are is not None:
            count = min(count, there_are)  # the same episode again tells nothing
        size = min(self.eval_batch_size, count)
        return evaluator(
            family.episodes(split, batch_size=size, seed=seed, num_batches=-(-count // size)),
            count,
            family.task_indices(split, seed=seed, count=count),
        )

    def _given(self, names: tuple[str, ...]) -> dict[str, Any]:
        values = {name: getattr(self, name) for name in names}
        return {name: value for name, value in values.items() if value is not None}

    # -- in a workdir ---------------------------------------------------------------------------

    def write(self, workdir: str | os.PathLike[str]) -> None:
        """Writes the settings to the folder `workdir`, made if need be, as JSON.

        Raises:
            ValueError: nothing can be written there.
        """
        text = json.dumps(dataclasses.asdict(self), indent=2) + "\n"
        try:
            pathlib.Path(workdir).mkdir(parents=True, exist_ok=True)
            write_atomically(pathlib.Path(workdir) / CONFIG_FILE, text)
        except OSError as error:
            raise ValueError(
                f"Expected workdir to be a folder that can be written to, got {workdir} "
                f"({error.strerror}); pass another."
            ) from error

    @classmethod
    def read(cls, workdir: str | os.PathLike[str]) -> Experiment:
        """Returns the settings of the run in `workdir`.

        Raises:
            ValueError: there is no run, or its settings cannot be read.
        """
        path = pathlib.Path(workdir) / CONFIG_FILE
        if not path.is_file():
            raise ValueError(
                f"Expected workdir to be the folder of a run, got {workdir} without a "
                f"{CONFIG_FILE}; train there first, or pass the right folder."
            )
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
            lists = {name: tuple(v) for name, v in values.items() if isinstance(v, list)}
            return cls(**(values | lists))
        except (AttributeError, TypeError, ValueError) as error:
            raise ValueError(
                f"Expected {path} to hold the settings of a run of this version, got a file that "
                f"does not ({error}); use the version that wrote it, or another workdir."
            ) from error

    def require_free_or_own(self, workdir: str | os.PathLike[str]) -> None:
        """Raises ValueError if `workdir` holds a run with other settings.

        Only a run that has come as far as a checkpoint counts: there is nothing to lose before.
        """
        if has_checkpoint(workdir):
            self.refuse_unless_like(Experiment.read(workdir), workdir, MAY_CHANGE_ON_RESUMING)

    def refuse_unless_like(
        self, stored: Experiment, workdir: str | os.PathLike[str], may_change: frozenset[str]
    ) -> None:
        """Raises ValueError if a setting differs from a `stored` run's and must not."""
        old, new = dataclasses.asdict(stored), dataclasses.asdict(self)
        differing = [n for n in new if n not in may_change and old[n] != new[n]]
        if differing:
            pairs = ", ".join(f"--{n}={_text(new[n])} (there {_text(old[n])})" for n in differing)
            raise ValueError(
                f"Expected the settings of the run in {workdir}, got {pairs}; pass its settings, "
                "or another --workdir."
            )


def _text(value: Any) -> str:
    return ",".join(map(str, value)) if isinstance(value, tuple) else str(value)


def _chosen(kind: str, name: str, registry: Mapping[str, Any]) -> Any:
    if name not in registry:
        raise ValueError(
            f"Expected {kind} to be one of {', '.join(registry)}, got {name!r}; use one of them."
        )
    return registry[name]


def _of_keras(kind: str, name: str, get: Callable[[str], Any]) -> Any:
    try:
        return get(name)
    except ValueError as error:
        raise ValueError(
            f"Expected {kind} to be the name of one of Keras, got {name!r}; see "
            f"https://keras.io/api for the {kind}s there are."
        ) from error


def _made(what: str, factory: Callable[..., Any], given: Mapping[str, Any]) -> Any:
    """Calls `factory` with the settings `given`, if it has them all and needs no others."""
    parameters = inspect.signature(factory).parameters
    foreign = [name for name in given if name not in parameters]
    if foreign:
        raise ValueError(
            f"Expected settings that {what} has, got {_flags(foreign)}; leave these out, or choose "
            "another."
        )
    missing = [
        name
        for name, parameter in parameters.items()
        if parameter.default is inspect.Parameter.empty
        and parameter.kind is not inspect.Parameter.VAR_KEYWORD
        and name not in given
    ]
    if missing:
        raise ValueError(
            f"Expected a value of {_flags(missing)} for {what}, got none; pass "
            f"{'it' if len(missing) == 1 else 'them'}."
        )
    return factory(**given)


def _made_solvers(chosen: Mapping[str, str], given: Mapping[str, Any]) -> dict[str, Any]:
    """Makes solvers by their roles, of the settings `given`: each is for those that have it."""
    factories = {role: _chosen(role, name, SOLVERS) for role, name in chosen.items()}
    known = {role: inspect.signature(factory).parameters for role, factory in factories.items()}
    foreign = set(given).difference(*known.values())  # to every one of them
    return {
        role: _made(
            f"{role} {chosen[role]}",
            factory,
            {name: v for name, v in given.items() if name in known[role] or name in foreign},
        )
        for role, factory in factories.items()
    }


def _flags(arguments: Sequence[str]) -> str:
    return " and ".join(f"--{_SETTING_OF.get(name, name)}" for name in arguments)
