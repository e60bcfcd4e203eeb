"""A Keras model and its loss as pure functions of parameter vectors, for a batch of tasks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeAlias, TypeVar

import keras
import tensorflow as tf

from amaml_tf.aliases import Tensors, Vectors
from amaml_tf.episodes import Examples
from amaml_tf.functional import example_pieces, keras_patches
from amaml_tf.functional.checks import (
    check_model,
    refuse_assignments,
    refuse_losses_of_activities,
)
from amaml_tf.functional.example_pieces import Whole, over_support
from amaml_tf.functional.example_weights import blanked, counting_inputs, nan_if_none_counts
from amaml_tf.functional.loss import Loss, LossWeights, TaskLoss
from amaml_tf.functional.mapping import map_tasks, traced_once
from amaml_tf.functional.parameters import ParameterVectors, is_noise

T = TypeVar("T")
#: Values of the non-trainable variables of a model: statistics and random seeds.
State: TypeAlias = Sequence[tf.Tensor]


class FunctionalModel(ParameterVectors):
    """The losses of a Keras model on episodes, as functions of its parameters.

    The parameters of a task are two vectors, see `ParameterVectors`. A batch of tasks
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
        examples_per_step: the largest number of support examples of a task that are evaluated at a
            time; None: all.

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
        examples_per_step: int | None = None,
    ) -> None:
        check_model(model)
        example_pieces.check(examples_per_step, model, batch_statistics)
        super().__init__(model, adapted)
        self.batch_statistics = batch_statistics
        self._examples_per_step = examples_per_step
        names = getattr(model, "output_names", None) or ()
        #: How many batches share the memory.
        self.copies = 1
        self.loss = TaskLoss(loss, self.dtype, loss_weights, names)
        self.arrange(vectorize)

    def arrange(
        self, vectorize: bool, *, jit_derivatives: bool = False, separate: bool = False
    ) -> None:
        """Changes how the tasks are evaluated, see `Execution`; traces anew."""
        self.vectorize = vectorize
        self._jit_derivatives = jit_derivatives
        self.separate = separate
        # To optimise many copies of a large model takes long. (XLA and LiteRT need them.)
        attributes = {"_noinline": True} if separate else None
        # Traced once and called from every loop: a solver's graph has one copy of each.
        self.gradient = traced_once(self._gradient, attributes)
        self.curvature = traced_once(self._curvature, attributes)
        self.query = traced_once(self._query)
        self.query_gradient = traced_once(self._query_gradient)

    def side_by_side(self) -> FunctionalModel:
        """Returns the same functions, evaluated task by task: for one task, or without XLA."""
        return FunctionalModel(
            self.model,
            self.loss.given,
            loss_weights=self.loss.given_weights,
            batch_statistics=self.batch_statistics,
            adapted=self.adapted,
            vectorize=False,
            examples_per_step=self._examples_per_step,
        )

    def state(self) -> State:
        """Returns the values of the non-trainable variables: statistics and random seeds."""
        return [tf.convert_to_tensor(v) for v in self.model.non_trainable_variables]

    def advance_noise(self) -> None:
        """Changes the random seeds of layers with noise: the next solve draws new masks."""
        for variable in self.model.non_trainable_variables:
            if is_noise(variable):
                variable.assign(variable + tf.ones_like(variable))

    def of_one_task(
        self, support: Examples, state: State
    ) -> tf.types.experimental.ConcreteFunction:
        """Returns the traced loss of one task, of parameter vectors and examples.

        Args:
            support: the `tf.TensorSpec`s of a batch of support sets.
            state: those of the non-trainable variables.
        """
        examples = tf.nest.map_structure(lambda v: tf.TensorSpec(v.shape[1:], v.dtype), support)
        vectors = [tf.TensorSpec([part.size], self.dtype) for part in self._layouts]
        loss = tf.function(self._task_loss, autograph=False)
        return loss.get_concrete_function(*vectors, state, examples, adapting=True)

    # -- one task -------------------------------------------------------------------------------

    def predict(
        self,
        parameters: Sequence[tf.Tensor],
        state: State,
        x: Tensors,
        adapting: bool,
        chosen: tf.Tensor | None = None,
        whole: Whole | None = None,
    ) -> tuple[Tensors, tf.Tensor]:
        """Returns the outputs of the model for one task, and the sum of its layers' losses.

        Args:
            parameters: values of the trainable variables.
            state: values of the others.
            x: inputs, `[n, ...]`.
            adapting: whether dropout and other noise is active.
            chosen: bool `[n]`, the examples that count; None: all.
            whole: of which `x` is a piece, whose share of the layers' losses is returned.
        """
        with (
            keras_patches.batch_statistics(self.batch_statistics),
            keras_patches.twice_differentiable(),
            keras_patches.statistics_of_some(chosen),
            keras_patches.assignments() as assigned,
        ):
            outputs, _, losses = self.model.stateless_call(
                list(parameters), list(state), x, return_losses=True, **self.call_options(adapting)
            )
        refuse_assignments(self.model, assigned)
        if chosen is not None or whole is not None:
            refuse_losses_of_activities(self.model, losses)
        penalty = tf.cast(tf.add_n(losses) if losses else tf.zeros([]), self.dtype)
        return outputs, penalty if whole is None else penalty * whole.share(x)

    def statistics_of(
        self, parameters: Sequence[tf.Tensor], state: State, examples: Examples
    ) -> list[tf.Tensor]:
        """Returns `state` with the batch normalization statistics of the inputs of one task.

        They are those of predictions: noise is off. With `batch_statistics=False`, `state` is
        unchanged.
        """
        if not self.batch_statistics:
            return list(state)
        x, chosen = counting_inputs(examples)
        with keras_patches.statistics_of_one_batch(), keras_patches.statistics_of_some(chosen):
            _, statistics = self.model.stateless_call(
                list(parameters), list(state), x, **self.call_options(False)
            )
        return statistics

    def call_options(self, training: bool) -> dict[str, bool]:
        """Returns the argument `training`, if the model's `call` has it, as `Model.fit` does."""
        has_it = self.model._call_has_training_arg  # noqa: SLF001 - `Model.fit` asks this as well
        return {"training": training} if has_it else {}

    def _task_loss(
        self,
        adapted: Vectors,
        held: Vectors,
        state: State,
        examples: Examples,
        adapting: bool,
        whole: Whole | None = None,  # of which the examples are a piece
    ) -> tuple[tf.Tensor, Tensors]:
        values, (x, chosen) = self.unravel(adapted, held), counting_inputs(examples)
        outputs, penalty = self.predict(values, state, x, adapting, chosen, whole)
        loss = self.loss(examples[1], outputs, (*examples, None)[2], whole)
        loss = tf.cast(loss, self.dtype) + penalty
        if chosen is not None:
            loss = nan_if_none_counts(loss, examples[2] if whole is None else whole.weight)
        return loss, outputs if chosen is None else blanked(outputs, chosen)

    # -- a batch of tasks; examples are x, y and weight (or none), the task axis first -----------

    def _gradient(
        self,
        adapted: Vectors,
        held: Vectors,
        state: State,
        *examples: Tensors,
    ) -> Vectors:
        """Returns ∇L of the support loss with respect to `adapted`, and as that is."""

        def one(task: tuple[Any, ...]) -> tuple[Vectors, ...]:
            vector, held, examples, whole = task
            with tf.GradientTape(watch_accessed_variables=False) as tape:
                tape.watch(vector)
                loss, _ = self._task_loss(vector, held, state, examples, True, whole)
            return (_dense_gradient(tape, loss, vector),)

        return self._of_support(one, (adapted, held), examples, (adapted,))[0]

    def _curvature(
        self,
        adapted: tf.Tensor,
        held: tf.Tensor,
        state: State,
        vector: tf.Tensor,
        *examples: Tensors,
    ) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        """Returns ∇L, and the products of ∇²L (the Hessian) and ∂²L/∂held∂adapted with `vector`.

        Their shapes are `[B, P]`, `[B, P]`, `[B, Q]`.
        """

        def one(task: tuple[Any, ...]) -> tuple[tf.Tensor, ...]:
            point, held, direction, examples, whole = task
            with tf.GradientTape(watch_accessed_variables=False) as outer:
                outer.watch([point, held])
                with tf.GradientTape(watch_accessed_variables=False) as inner:
                    inner.watch(point)
                    loss, _ = self._task_loss(point, held, state, examples, True, whole)
                gradient = _dense_gradient(inner, loss, point)
            products = outer.gradient(
                gradient,
                [point, held],
                output_gradients=direction,
                unconnected_gradients=tf.UnconnectedGradients.ZERO,
            )
            return gradient, *(tf.convert_to_tensor(product) for product in products)

        like = adapted, adapted, held
        return self._of_support(one, (adapted, held, vector), examples, like)

    def _of_support(
        self,
        one: Callable[..., tuple[Vectors, ...]],
        vectors: tuple[Vectors, ...],
        examples: Examples,
        like: tuple[Vectors, ...],
    ) -> tuple[Vectors, ...]:
        if self._examples_per_step is not None:
            example_pieces.require_separate(self.model, self.predict, examples[0])
        return over_support(
            one, vectors, examples, like, self._map_derivatives, self._examples_per_step
        )

    def _query(
        self,
        adapted: tf.Tensor,
        held: tf.Tensor,
        state: State,
        *examples: Tensors,
    ) -> tuple[tf.Tensor, Tensors]:
        """Returns the query losses `[B]` and the outputs of the model."""

        def one(task: tuple[Tensors, ...]) -> tuple[tf.Tensor, Tensors]:
            vector, held, *examples = task
            return self._task_loss(vector, held, state, examples, adapting=False)

        return self._map(one, (adapted, held, *examples))

    def _query_gradient(
        self,
        adapted: tf.Tensor,
        held: tf.Tensor,
        state: State,
        *examples: Tensors,
    ) -> tuple[Tensors, ...]:
        """Returns query losses `[B]`, their gradients `[B, P]` and `[B, Q]`, and the outputs."""

        def one(task: tuple[Tensors, ...]) -> tuple[Tensors, ...]:
            vector, held, *examples = task
            with tf.GradientTape(watch_accessed_variables=False) as tape:
                tape.watch([vector, held])
                loss, outputs = self._task_loss(vector, held, state, examples, adapting=False)
            gradients = tape.gradient(
                loss, [vector, held], unconnected_gradients=tf.UnconnectedGradients.ZERO
            )
            return loss, *(tf.convert_to_tensor(g) for g in gradients), outputs

        return self._map(one, (adapted, held, *examples))

    def _map(self, one: Callable[[tuple[Tensors, ...]], T], tasks: tuple[Tensors, ...]) -> T:
        return map_tasks(one, tasks, vectorize=self.vectorize)

    def _map_derivatives(
        self, one: Callable[[tuple[Tensors, ...]], T], tasks: tuple[Tensors, ...]
    ) -> T:
        return map_tasks(one, tasks, vectorize=self.vectorize, jit_compile=self._jit_derivatives)


def _dense_gradient(tape: tf.GradientTape, loss: tf.Tensor, vector: Vectors) -> Vectors:
    gradient = tape.gradient(loss, vector, unconnected_gradients=tf.UnconnectedGradients.ZERO)
    return tf.nest.map_structure(tf.convert_to_tensor, gradient)
