"""Adaptation by a Keras optimizer that trains from the learned initialization."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import keras
import tensorflow as tf

from amaml_tf.aliases import Tensors
from amaml_tf.episodes import Episodes, number_of_tasks
from amaml_tf.errors import AdaptationError, UsageError
from amaml_tf.functional.model import FunctionalModel, State, is_noise
from amaml_tf.functional.query_statistics import Queries
from amaml_tf.learner.curves import Point
from amaml_tf.learner.meta_learner import MetaLearner
from amaml_tf.solvers.diagnostics import COMPLETED, NON_FINITE, Diagnostics

# These optimizers update each entry of a variable independently of the others, so one variable can
# hold the parameters of many tasks.
ELEMENTWISE = (
    keras.optimizers.SGD,
    keras.optimizers.Adam,
    keras.optimizers.AdamW,
    keras.optimizers.RMSprop,
    keras.optimizers.Adagrad,
    keras.optimizers.Adadelta,
    keras.optimizers.Adamax,
    keras.optimizers.Nadam,
    keras.optimizers.Ftrl,
    keras.optimizers.Lion,
)

# Options that combine entries, or that need more than update steps.
_FOREIGN_OPTIONS = ("clipnorm", "global_clipnorm", "use_ema", "loss_scale_factor")


class FineTuning:
    """Trains every task of a batch on its support set with a Keras optimizer, full batch.

    All tasks are trained at once, each independently of the others, in one compiled loop. Every
    batch starts from the initialization and from the optimizer's initial state. Dropout draws new
    masks in every step, as in `keras.Model.fit`. Weight decay applies to all trained parameters.

    Args:
        learner: a compiled learner, with the initialization as its model and the loss of the
            support sets.
        optimizer: the optimizer with its settings; it is copied. Keras keeps learning rates in
            float32.
        all_layers: whether to train all trainable parameters, as a user does who has only the
            initialization; default: only those that the algorithm adapts.
        query_statistics: whose statistics batch normalization uses on the query sets, see
            `Queries`.

    Raises:
        UsageError: the optimizer mixes the entries of a tensor, and so would mix the tasks.
    """

    def __init__(
        self,
        learner: MetaLearner,
        optimizer: keras.optimizers.Optimizer,
        all_layers: bool = False,
        query_statistics: str = "batch",
    ) -> None:
        require_elementwise(optimizer)
        self._learner = learner
        self._function = learner.function
        if all_layers and not all(learner.function.adapted):
            self._function = FunctionalModel(
                learner.model,
                learner.function.loss.given,
                loss_weights=learner.function.loss.given_weights,
                batch_statistics=learner.batch_statistics,
                vectorize=learner.execution.vectorize,
            )
        self._query, self._query_statistics = Queries(self._function), query_statistics
        self._given = optimizer
        self._num_tasks = -1  # the batch size of the compiled program

    def points(self, episodes: Episodes, steps: Sequence[int]) -> Iterator[Point]:
        """Yields the query sets' losses and outputs after each number of steps.

        Args:
            episodes: a batch `((support_x, support_y), (query_x, query_y))`, task axis first.
            steps: numbers of steps in increasing order.

        Raises:
            AdaptationError: values of a task become infinite or NaN, and the learner does not drop
                such tasks.
        """
        function, support = self._function, episodes[0]
        num_tasks, state = number_of_tasks(episodes), function.state()
        initialization, held = function.initialization(num_tasks)
        self._begin(num_tasks, initialization)
        done = 0
        for number in steps:
            self._run(tf.constant(number - done), held, state, *support)
            adapted = tf.convert_to_tensor(self._parameters)
            diagnostics = _diagnostics(adapted, number, number - done)
            if self._learner.on_failure == "raise":
                _check(diagnostics, number)
            done = number
            losses, outputs = self._query(adapted, held, state, episodes, self._query_statistics)
            yield Point(losses, outputs, diagnostics)

    def _begin(self, num_tasks: int, initialization: tf.Tensor) -> None:
        """Sets the parameters `[B, P]` and the optimizer to their initial state."""
        if num_tasks != self._num_tasks:
            self._num_tasks = num_tasks
            self._build(initialization)
        self._parameters.assign(initialization)
        for variable, value in zip(self._optimizer.variables, self._first_state, strict=True):
            variable.assign(value)

    def _build(self, initialization: tf.Tensor) -> None:
        """Creates the variables and the program for a batch of tasks."""
        given = self._given
        self._parameters = keras.Variable(
            initialization, dtype=self._function.dtype.name, name="parameters"
        )
        self._optimizer = type(given).from_config(given.get_config())
        self._optimizer.build([self._parameters])
        self._first_state = [tf.constant(v.numpy()) for v in self._optimizer.variables]
        # The number of steps is a tensor, so that one program serves every number.
        self._run = tf.function(
            self._train, jit_compile=self._learner.execution.jit_compile, autograph=False
        )

    def _train(
        self, num_steps: tf.Tensor, held: tf.Tensor, state: State, *support: Tensors
    ) -> None:
        function, parameters, optimizer = self._function, self._parameters, self._optimizer
        noisy = [is_noise(v) for v in function.model.non_trainable_variables]

        def step(number: tf.Tensor) -> tuple[tf.Tensor]:
            done = tf.convert_to_tensor(optimizer.iterations)
            now = [
                value + tf.cast(done, value.dtype) if redrawn else value
                for value, redrawn in zip(state, noisy, strict=True)
            ]
            gradient = function.gradient(tf.convert_to_tensor(parameters), held, now, *support)
            optimizer.apply([gradient], [parameters])
            return (number + 1,)

        tf.while_loop(lambda number: number < num_steps, step, (tf.constant(0),))


def require_elementwise(optimizer: keras.optimizers.Optimizer) -> None:
    """Raises UsageError unless `optimizer` updates every entry of a tensor independently."""
    if type(optimizer) not in ELEMENTWISE:
        names = ", ".join(kind.__name__ for kind in ELEMENTWISE)
        raise UsageError(
            f"Expected an optimizer that treats every parameter apart ({names}), because the "
            "parameters of all tasks are stepped as one tensor, got "
            f"{type(optimizer).__name__}; use one of them."
        )
    given = [name for name in _FOREIGN_OPTIONS if getattr(optimizer, name, None)]
    if given:
        raise UsageError(
            f"Expected an optimizer without {', '.join(_FOREIGN_OPTIONS)}, which mix the tasks of "
            f"a batch or need more than update steps, got {', '.join(given)}; leave it out. "
            "clipvalue can be used: it clips every entry separately."
        )


def _diagnostics(adapted: tf.Tensor, time: int, num_steps: int) -> Diagnostics:
    """Returns the diagnostics of the last `num_steps` steps to `adapted` `[B, P]`, as of a flow."""
    finite = tf.reduce_all(tf.math.is_finite(adapted), axis=-1)
    none = tf.zeros_like(finite, tf.int32)
    rows = tf.zeros_like(finite, adapted.dtype)
    return Diagnostics(
        status=tf.where(finite, COMPLETED, NON_FINITE),
        time=rows + time,
        num_accepted_steps=none + num_steps,
        num_rejected_steps=none,
        num_evaluations=none + num_steps,
        num_jacobian_products=none,
        max_stages=none + 1,
        spectral_radius=rows,
    )


def _check(diagnostics: Diagnostics, num_steps: int) -> None:
    failed = diagnostics.status.numpy() != COMPLETED
    if failed.any():
        raise AdaptationError(
            f"Fine-tuning failed for task {failed.argmax()} of the batch ({failed.sum()} of "
            f"{failed.size} tasks failed) within {num_steps} steps: values became infinite or NaN. "
            "Look for NaN in its support set; otherwise a smaller learning rate helps."
        )
