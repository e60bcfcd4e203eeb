"""A Keras model and its loss as pure functions of parameter vectors, for a batch of tasks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple, TypeAlias, TypeVar

import keras
import tensorflow as tf

from amaml_tf.aliases import Tensors
from amaml_tf.errors import UsageError
from amaml_tf.functional import keras_patches
from amaml_tf.functional.checks import check_model, refuse_constraints
from amaml_tf.functional.loss import Loss, LossWeights, TaskLoss
from amaml_tf.vectors import Layout

T = TypeVar("T")
#: Values of the non-trainable variables of a model: statistics and random seeds.
State: TypeAlias = Sequence[tf.Tensor]
#: The types of the results of a function of one task; None if TensorFlow infers them.
Spec: TypeAlias = "tf.TypeSpec | tuple[Spec, ...] | None"


class Parameters(NamedTuple):
    """The trainable parameters of B tasks: `[B, P]` adapted ones, `[B, Q]` held ones."""

    adapted: tf.Tensor
    held: tf.Tensor


class FunctionalModel:
    """The losses of a Keras model on episodes, as functions of its parameters.

    The parameters of a task are two vectors: `adapted`, the state of the gradient flow, and
    `held`, the trainable parameters that adaptation does not change (often none). A batch of tasks
    has the task axis first, and every task is treated separately.

    Layers behave as follows. *Dropout and other noise* is active during adaptation, with one mask
    for a whole solve, and off in predictions. *Batch normalization* uses the statistics of the
    batch it sees, in adaptation and in predictions (the transductive setting of the MAML papers),
    or always the stored ones if `batch_statistics` is false; a frozen batch normalization
    layer always uses the stored ones. Statistics and seeds are never part of the flow's state.

    Args:
        model: a built Keras model whose trainable variables have one dtype, float32 or float64.
        loss: what `keras.Model.compile` takes: a `keras.losses.Loss`, its name, a function of
            (y_true, y_pred), or a list or dict of these, one for each output.
        loss_weights: a factor for each loss; None: 1.
        batch_statistics: see above.
        adapted: for every trainable variable, whether adaptation changes it; None: all.
        vectorize: whether to evaluate the tasks as one vectorised program (`tf.vectorized_map`) or
            separately, in parallel (`tf.map_fn`). Which is faster depends on layers and device.

    Raises:
        UsageError: if the model is not built, has no variable to adapt or mixes dtypes, an adapted
            variable has a constraint, or there is no loss.
    """

    def __init__(
        self,
        model: keras.Model,
        loss: Loss | None,
        *,
        loss_weights: LossWeights | None = None,
        batch_statistics: bool = True,
        adapted: Sequence[bool] | None = None,
        vectorize: bool = True,
    ) -> None:
        check_model(model)
        self.model = model
        self.batch_statistics = batch_statistics
        self.vectorize = vectorize
        names = getattr(model, "output_names", None) or ()
        self.loss = TaskLoss(loss, self.dtype, loss_weights, names)
        variables = model.trainable_variables
        self.adapted = tuple(adapted) if adapted is not None else (True,) * len(variables)
        if len(self.adapted) != len(variables) or not any(self.adapted):
            raise UsageError(
                f"Expected `adapted` to mark at least one of the {len(variables)} trainable "
                f"variables of the model, got {adapted}."
            )
        chosen, rest = self.split(variables)
        refuse_constraints(chosen)
        self.layout, self.held_layout = Layout.of(chosen), Layout.of(rest)
        # Traced once and called from every loop: a solver's graph holds one copy of each.
        self.gradient = tf.function(self._gradient, autograph=False)
        self.curvature = tf.function(self._curvature, autograph=False)
        self.query = tf.function(self._query, autograph=False)
        self.query_gradient = tf.function(self._query_gradient, autograph=False)

    def side_by_side(self) -> FunctionalModel:
        """Returns the same functions, evaluated task by task: for one task, or without XLA."""
        return FunctionalModel(
            self.model,
            self.loss.given,
            loss_weights=self.loss.given_weights,
            batch_statistics=self.batch_statistics,
            adapted=self.adapted,
            vectorize=False,
        )

    @property
    def dtype(self) -> tf.DType:
        """The dtype of the parameter vectors."""
        return tf.as_dtype(self.model.trainable_variables[0].dtype)

    def split(self, values: Sequence[T]) -> tuple[list[T], list[T]]:
        """Splits a list aligned with the trainable variables into adapted and held ones."""
        pairs = list(zip(values, self.adapted, strict=True))
        return [v for v, chosen in pairs if chosen], [v for v, chosen in pairs if not chosen]

    def merge(self, chosen: Sequence[T], rest: Sequence[T]) -> list[T]:
        """Undoes `split`."""
        one, other = iter(chosen), iter(rest)
        return [next(one) if adapted else next(other) for adapted in self.adapted]

    def ravel(
        self, parameters: Sequence[tf.Tensor], batch_ndims: int = 0
    ) -> tuple[tf.Tensor, tf.Tensor]:
        """Returns the vectors (adapted, held) of a list aligned with the trainable variables."""
        chosen, rest = self.split(parameters)
        adapted = self.layout.ravel(chosen, batch_ndims)
        held = self.held_layout.ravel(rest, batch_ndims) if rest else adapted[..., :0]
        return adapted, held

    def unravel(self, adapted: tf.Tensor, held: tf.Tensor) -> list[tf.Tensor]:
        """Undoes `ravel`, for vectors with any leading dimensions."""
        rest = self.held_layout.unravel(held) if self.held_layout.shapes else []
        return self.merge(self.layout.unravel(adapted), rest)

    def initialization(self, num_tasks: int) -> Parameters:
        """Returns the model's own trainable parameters, the same for `num_tasks` tasks."""
        vectors = self.ravel(self.parameters())
        return Parameters(*(for_every_task(vector, num_tasks) for vector in vectors))

    def parameters(self) -> list[tf.Tensor]:
        """Returns the values of the trainable variables."""
        return [tf.convert_to_tensor(v) for v in self.model.trainable_variables]

    def state(self) -> State:
        """Returns the values of the non-trainable variables: statistics and random seeds."""
        return [tf.convert_to_tensor(v) for v in self.model.non_trainable_variables]

    def advance_noise(self) -> None:
        """Changes the random seeds of layers with noise: the next solve draws new masks."""
        for variable in self.model.non_trainable_variables:
            if is_noise(variable):
                variable.assign(variable + tf.ones_like(variable))

    # -- one task -------------------------------------------------------------------------------

    def predict(
        self,
        parameters: Sequence[tf.Tensor],
        state: State,
        x: Tensors,
        adapting: bool,
    ) -> tuple[Tensors, tf.Tensor]:
        """Returns the outputs of the model for one task, and the sum of its layers' losses."""
        with (
            keras_patches.batch_statistics(self.batch_statistics),
            keras_patches.twice_differentiable_moments(),
        ):
            outputs, _, losses = self.model.stateless_call(
                list(parameters), list(state), x, return_losses=True, **self._training(adapting)
            )
        penalty = tf.add_n(losses) if losses else tf.zeros([], self.dtype)
        return outputs, tf.cast(penalty, self.dtype)

    def statistics_of(
        self, parameters: Sequence[tf.Tensor], state: State, x: Tensors
    ) -> list[tf.Tensor]:
        """Returns `state` with the batch normalization statistics of the inputs `x` of one task.

        With `batch_statistics=False`, `state` is unchanged.
        """
        if not self.batch_statistics:
            return list(state)
        with keras_patches.statistics_of_one_batch():
            _, statistics = self.model.stateless_call(
                list(parameters), list(state), x, **self._training(True)
            )
        return statistics

    def _training(self, training: bool) -> dict[str, bool]:
        """Returns the argument `training`, if the model's `call` has it, as `Model.fit` does."""
        has_it = self.model._call_has_training_arg  # noqa: SLF001 - `Model.fit` asks this as well
        return {"training": training} if has_it else {}

    def _task_loss(
        self,
        adapted: tf.Tensor,
        held: tf.Tensor,
        state: State,
        x: Tensors,
        y: Tensors,
        adapting: bool,
    ) -> tuple[tf.Tensor, Tensors]:
        outputs, penalty = self.predict(self.unravel(adapted, held), state, x, adapting)
        return tf.cast(self.loss(y, outputs), self.dtype) + penalty, outputs

    # -- a batch of tasks -----------------------------------------------------------------------

    def _gradient(
        self, adapted: tf.Tensor, held: tf.Tensor, state: State, x: Tensors, y: Tensors
    ) -> tf.Tensor:
        """Returns ∇L of the support loss with respect to `adapted`, `[B, P]`."""

        def one(task: tuple[Tensors, ...]) -> tf.Tensor:
            vector, held, x, y = task
            with tf.GradientTape(watch_accessed_variables=False) as tape:
                tape.watch(vector)
                loss, _ = self._task_loss(vector, held, state, x, y, adapting=True)
            return _dense_gradient(tape, loss, vector)

        return self._map(one, (adapted, held, x, y), tf.TensorSpec(adapted.shape[1:], self.dtype))

    def _curvature(
        self,
        adapted: tf.Tensor,
        held: tf.Tensor,
        state: State,
        x: Tensors,
        y: Tensors,
        vector: tf.Tensor,
    ) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        """Returns ∇L, and the products of ∇²L (the Hessian) and ∂²L/∂held∂adapted with `vector`.

        Their shapes are `[B, P]`, `[B, P]`, `[B, Q]`.
        """

        def one(task: tuple[Tensors, ...]) -> tuple[tf.Tensor, ...]:
            point, held, x, y, direction = task
            with tf.GradientTape(watch_accessed_variables=False) as outer:
                outer.watch([point, held])
                with tf.GradientTape(watch_accessed_variables=False) as inner:
                    inner.watch(point)
                    loss, _ = self._task_loss(point, held, state, x, y, adapting=True)
                gradient = _dense_gradient(inner, loss, point)
            products = outer.gradient(
                gradient,
                [point, held],
                output_gradients=direction,
                unconnected_gradients=tf.UnconnectedGradients.ZERO,
            )
            return gradient, *(tf.convert_to_tensor(product) for product in products)

        spec = [tf.TensorSpec(v.shape[1:], self.dtype) for v in (adapted, adapted, held)]
        return self._map(one, (adapted, held, x, y, vector), tuple(spec))

    def _query(
        self, adapted: tf.Tensor, held: tf.Tensor, state: State, x: Tensors, y: Tensors
    ) -> tuple[tf.Tensor, Tensors]:
        """Returns the query losses `[B]` and the outputs of the model."""

        def one(task: tuple[Tensors, ...]) -> tuple[tf.Tensor, Tensors]:
            vector, held, x, y = task
            return self._task_loss(vector, held, state, x, y, adapting=False)

        scalar = tf.TensorSpec([], self.dtype)
        spec = (scalar, self._outputs_spec(adapted, held, state, x))
        return self._map(one, (adapted, held, x, y), spec)

    def _query_gradient(
        self, adapted: tf.Tensor, held: tf.Tensor, state: State, x: Tensors, y: Tensors
    ) -> tuple[Tensors, ...]:
        """Returns query losses `[B]`, their gradients `[B, P]` and `[B, Q]`, and the outputs."""

        def one(task: tuple[Tensors, ...]) -> tuple[Tensors, ...]:
            vector, held, x, y = task
            with tf.GradientTape(watch_accessed_variables=False) as tape:
                tape.watch([vector, held])
                loss, outputs = self._task_loss(vector, held, state, x, y, adapting=False)
            gradients = tape.gradient(
                loss, [vector, held], unconnected_gradients=tf.UnconnectedGradients.ZERO
            )
            return loss, *(tf.convert_to_tensor(g) for g in gradients), outputs

        vectors = [tf.TensorSpec(v.shape[1:], self.dtype) for v in (adapted, held)]
        scalar = tf.TensorSpec([], self.dtype)
        spec = (scalar, *vectors, self._outputs_spec(adapted, held, state, x))
        return self._map(one, (adapted, held, x, y), spec)

    def _outputs_spec(
        self, adapted: tf.Tensor, held: tf.Tensor, state: State, x: Tensors
    ) -> tf.TypeSpec | None:
        if self.vectorize:
            return None  # tf.vectorized_map infers it
        vector, rest, x = tf.nest.map_structure(lambda v: v[0], (adapted, held, x))
        outputs, _ = self.predict(self.unravel(vector, rest), state, x, adapting=False)
        return tf.nest.map_structure(tf.type_spec_from_value, outputs)

    def _map(
        self, one: Callable[[tuple[Tensors, ...]], T], tasks: tuple[Tensors, ...], spec: Spec
    ) -> T:
        if self.vectorize:
            return tf.vectorized_map(one, tasks, warn=False)
        return tf.map_fn(one, tasks, fn_output_signature=spec, parallel_iterations=8)


def for_every_task(vector: tf.Tensor, num_tasks: int) -> tf.Tensor:
    """Returns `vector` `[P]` repeated for every task, `[B, P]`."""
    return tf.tile(vector[tf.newaxis], [num_tasks, 1])


def is_noise(variable: keras.Variable) -> bool:
    """Returns whether a non-trainable variable is the seed of a layer's random numbers."""
    return variable.path.endswith("seed_generator_state")


def _dense_gradient(tape: tf.GradientTape, loss: tf.Tensor, vector: tf.Tensor) -> tf.Tensor:
    gradient = tape.gradient(loss, vector, unconnected_gradients=tf.UnconnectedGradients.ZERO)
    return tf.convert_to_tensor(gradient)
