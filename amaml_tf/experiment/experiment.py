"""What the settings of an experiment stand for: tasks, model, algorithm, learner, evaluation."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import keras

from amaml_tf import algorithms, models, tasks
from amaml_tf.errors import UsageError
from amaml_tf.evaluation import Evaluation, Evaluator
from amaml_tf.evaluation.fine_tuning import require_elementwise
from amaml_tf.experiment.declaration import settings_of
from amaml_tf.experiment.determinism import compute_deterministically
from amaml_tf.experiment.factories import arguments_of, made, made_solvers, of_keras
from amaml_tf.experiment.workdir import RunSettings
from amaml_tf.flow.gradient_flow import GradientFlow
from amaml_tf.learner.meta_learner import MetaLearner
from amaml_tf.training.telling import tell

T = TypeVar("T")


class Experiment(RunSettings):
    """A training run, by its settings: see `Settings` for them.

    To give methods of your own settings of their own, declare these in a subclass, and pass it to
    the commands: `amaml_tf.commands.train.run(MyExperiment)`.
    """

    def prepare(self) -> None:
        """Makes this process compute as the settings say; call it before all else.

        Raises:
            UsageError: it is too late for that.
        """
        if not self.deterministic:
            return
        compute_deterministically(self.seed)
        if (self.vectorize, self.jit_compile) != ("auto", "auto"):
            tell(
                "--deterministic: tasks are executed as their model asks for, whatever --vectorize "
                "and --jit_compile say, because each way has other last bits."
            )

    def make_family(self) -> tasks.TaskFamily:
        """Returns the family of tasks, with its data loaded.

        Raises:
            UsageError: there is no such task, it lacks its data, or a setting does not fit it.
        """
        factory = tasks.REGISTRY.find(self.task)
        given = self.given("task") | {"dtype": self.dtype}
        if "data_dir" in arguments_of(factory):  # it says best itself if it needs one
            given["data_dir"] = self.data_dir
        return self._made(f"task {self.task}", factory, given)

    def make_model(self, family: tasks.TaskFamily) -> keras.Model:
        """Returns a network for the inputs and outputs of `family`, with random first weights.

        Raises:
            UsageError: there is no such model, or a setting does not fit it.
        """
        name = self.model or ("cnn" if len(family.input_shape) == 3 else "mlp")
        if name == "cnn" and len(family.input_shape) != 3:
            raise UsageError(
                f"Expected images for model cnn, got inputs of shape {family.input_shape} from "
                f"task {self.task}; use --model=mlp."
            )
        if self.activation is not None:
            of_keras("activation", self.activation, keras.activations.get)
        factory = models.REGISTRY.find(name)
        fitted = functools.partial(factory, family.input_shape, family.num_outputs)
        given = self.given("model") | {"dtype": self.dtype, "seed": self.seed}
        if "vocabulary_size" in arguments_of(factory) and hasattr(family, "vocabulary_size"):
            given["vocabulary_size"] = family.vocabulary_size
        return self._made(f"model {name}", fitted, given)

    def make_flow(self) -> GradientFlow:
        """Returns the inner training run.

        Raises:
            UsageError: there is no such solver, or a setting does not fit it.
        """
        given = self.given("flow")
        chosen = {"solver": self.solver or "runge_kutta_chebyshev"}
        if self.adjoint_solver is not None:
            if self.adjoint != "continuous":
                raise UsageError(
                    f"Expected --adjoint=continuous beside --adjoint_solver={self.adjoint_solver}, "
                    f"got {self.adjoint or 'the default, discrete'}; pass it, or leave the adjoint "
                    "solver out."
                )
            chosen["adjoint_solver"] = self.adjoint_solver
        return GradientFlow(**(given | made_solvers(chosen, self.given("solver"))))

    def make_algorithm(self) -> algorithms.Algorithm:
        """Returns the meta-learning algorithm.

        Raises:
            UsageError: there is no such algorithm or solver, or a setting does not fit it.
        """
        factory = algorithms.REGISTRY.find(self.algorithm)
        if self.adjoint is not None and not getattr(factory, "uses_adjoint", True):
            raise UsageError(
                f"Expected no --adjoint with --algorithm={self.algorithm}, which trains without an "
                f"inner run, got {self.adjoint}; leave it out."
            )
        if "flow" in arguments_of(factory):
            given = self.given("algorithm") | {"flow": self.make_flow()}
        else:
            given = self.given("algorithm", "solver", "flow")
        return self._made(f"algorithm {self.algorithm}", factory, given)

    def make_optimizer(self) -> keras.optimizers.Optimizer:
        """Returns the optimizer of the meta-updates.

        Raises:
            UsageError: Keras has no such optimizer.
        """
        rate: float | keras.optimizers.schedules.LearningRateSchedule = self.meta_learning_rate
        if self.decay_steps is not None:
            rate = keras.optimizers.schedules.CosineDecay(rate, self.decay_steps)
        named = of_keras("optimizer", self.optimizer, keras.optimizers.get)
        return type(named)(learning_rate=rate, global_clipnorm=self.clip_norm)

    def make_eval_optimizer(self) -> keras.optimizers.Optimizer | None:
        """Returns the optimizer to adapt by in evaluations; None: the algorithm's own inner run.

        Raises:
            UsageError: Keras has no such optimizer, or it does not leave tasks apart.
        """
        if self.eval_optimizer is None:
            return None
        named = of_keras("eval_optimizer", self.eval_optimizer, keras.optimizers.get)
        require_elementwise(named)
        given = {"learning_rate": self.eval_learning_rate, "weight_decay": self.eval_weight_decay}
        return type(named)(**{name: value for name, value in given.items() if value is not None})

    def make_learner(self, family: tasks.TaskFamily) -> MetaLearner:
        """Returns a compiled learner of the initialization of a new model for `family`.

        Raises:
            UsageError: a setting is unknown or does not fit the others.
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
            on_failure=self.on_failure or "raise",
            vectorize="auto" if self.deterministic else self.vectorize,
            jit_compile="auto" if self.deterministic else self.jit_compile,
        )
        return learner

    def make_evaluator(self, learner: MetaLearner, family: tasks.TaskFamily) -> Evaluator:
        """Returns what measures `learner`, compiled, on episodes of `family`.

        Raises:
            UsageError: as `amaml_tf.evaluation.evaluate`.
        """
        return Evaluator(
            learner,
            family.metrics(),
            times=self.eval_times or None,
            optimizer=self.make_eval_optimizer(),
            steps=self.eval_steps or None,
            all_layers=bool(self.eval_all_layers),
            query_statistics=self.query_statistics,
        )

    def measure(
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
            UsageError: as `amaml_tf.evaluation.evaluate`.
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

    def _made(self, what: str, factory: Callable[..., T], given: Mapping[str, Any]) -> T:
        flag_of = {each.argument: name for name, each in settings_of(type(self)).items()}
        return made(what, factory, given, flag_of)
