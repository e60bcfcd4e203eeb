"""The signatures of an export: functions that run in the graph, and check what they are given."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

import tensorflow as tf

from amaml_tf.aliases import Tensors
from amaml_tf.functional import keras_patches
from amaml_tf.saved_model import validation, value_checks
from amaml_tf.saved_model.adapting import Adapted, Adapter, Named
from amaml_tf.saved_model.interface import Specs
from amaml_tf.saved_model.validation import Check

#: A traced function, which takes and gives tensors by name.
ConcreteFunction: TypeAlias = Any
#: Inputs or outputs of a signature, by name.
Arguments = Mapping[str, tf.Tensor]


@dataclasses.dataclass(frozen=True)
class Signature:
    """A function of tensors by name, and the specs of its arguments.

    Attributes:
        name: of the signature.
        specs: of its arguments, in their order.
        function: takes and gives tensors by name.
    """

    name: str
    specs: Specs
    function: Callable[[Arguments], dict[str, tf.Tensor]]

    @property
    def takes_tasks(self) -> bool:
        """Whether the first axis of its inputs is that of tasks."""
        return self.name.endswith("_batch")

    def traced(self) -> ConcreteFunction:
        """Returns the function in the graph, of arguments with the names of the specs."""
        return self.in_graph().get_concrete_function(*self.specs.values())

    def in_graph(self) -> tf.types.experimental.PolymorphicFunction:
        """Returns what `traced` traces."""

        def call(*arguments: tf.Tensor) -> dict[str, tf.Tensor]:
            return self.function(dict(zip(self.specs, arguments, strict=True)))

        kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
        named = [inspect.Parameter(name, kind) for name in self.specs]
        call.__signature__ = inspect.Signature(named)  # type: ignore[attr-defined]
        call.__name__ = self.name
        return tf.function(call, autograph=False)


class Signatures:
    """The signatures of an export.

    Args:
        adapter: adapts to a task.
    """

    def __init__(self, adapter: Adapter) -> None:
        self._adapter = adapter
        interface, dtype = adapter.interface, adapter.function.dtype
        self._interface = interface
        support = self._support_specs = {
            **_named("support_x", interface.inputs),
            **_named("support_y", interface.targets),
        }
        query = _named("query_x", interface.inputs)
        weight = {"support_weight": tf.TensorSpec([None], tf.float32)}
        options = {**weight}
        if adapter.takes_final_time:
            options["final_time"] = tf.TensorSpec([], dtype)
        inputs = _named("x", interface.inputs)
        self.all: Sequence[Signature] = [
            Signature("serving_default", inputs, self._predict),
            Signature("adapt", support, self._adapt),
            Signature("adapt_and_predict", {**support, **query}, self._adapt_and_predict),
            Signature("predict_with", {**self._adapted_specs(), **inputs}, self._predict_with),
            Signature(
                "adapt_and_predict_batch",
                _of_tasks({**support, **weight, **query}),
                self._adapt_and_predict_batch,
            ),
            Signature("adapt_weighted", {**support, **options}, self._adapt),
            Signature(
                "adapt_and_predict_weighted",
                {**support, **options, **query},
                self._adapt_and_predict,
            ),
        ]
        if adapter.takes_final_time:
            self.all += [
                Signature(
                    "adapt_and_predict_timed_batch",
                    _of_tasks({**support, **options, **query}),
                    self._adapt_and_predict_batch,
                )
            ]

    # -- the signatures -------------------------------------------------------------------------

    def _predict(self, given: Arguments) -> dict[str, tf.Tensor]:
        specs = _named("x", self._interface.inputs)
        given = self._checked(given, specs, self._query_checks(given, specs, 0))
        return self._named_predictions(self._adapter.predict_unadapted(_ends(given, "x")))

    def _predict_with(self, given: Arguments) -> dict[str, tf.Tensor]:
        inputs = _named("x", self._interface.inputs)
        specs = {**self._adapted_specs(), **inputs}
        given = self._checked(given, specs, self._query_checks(given, inputs, 0))
        parameters = [given[name] for name in self._interface.parameters]
        statistics = [given[name] for name in self._interface.statistics]
        return self._predictions(parameters, statistics, _ends(given, "x"))

    def _adapt(self, given: Arguments) -> dict[str, tf.Tensor]:
        adapted = self._adapted(given)
        values = self._adapter.unravel(adapted.parameters)
        named = zip(self._adapted_specs(), [*values, *adapted.statistics], strict=True)
        return {**dict(named), **_report(adapted)}

    def _adapt_and_predict(self, given: Arguments) -> dict[str, tf.Tensor]:
        specs = _named("query_x", self._interface.inputs)
        query = self._checked(given, specs, self._query_checks(given, specs, 0))
        with tf.control_dependencies([*query.values()]):  # before the work of adaptation
            adapted = self._adapted(given)
        parameters = self._adapter.unravel(adapted.parameters)
        predictions = self._predictions(parameters, adapted.statistics, _ends(query, "query_x"))
        return {**predictions, **_report(adapted)}

    def _adapt_and_predict_batch(self, given: Arguments) -> dict[str, tf.Tensor]:
        given = self._checked_tasks(given)

        def one(task: dict[str, tf.Tensor]) -> dict[str, tf.Tensor]:
            query = _ends(task, "query_x")
            checks = value_checks.of_inputs(self._adapter.vocabularies, "query_x", query)
            time, of_time = self._time(task)
            support = _ends(task, "support_x"), _ends(task, "support_y")
            adapted = self._adapter.adapt(
                *support, task["support_weight"], time, [*checks, *of_time]
            )
            parameters = self._adapter.unravel(adapted.parameters)
            checked = self._adapter.vocabularies.known_if_checked
            with keras_patches.tokens_read(checked):  # or all tasks would fail
                predictions = self._predictions(parameters, adapted.statistics, query)
            for end in self._interface.classes:
                named = predictions[f"classes{end}"]
                predictions[f"classes{end}"] = tf.where(tf.equal(adapted.error, ""), named, "")
            return {**predictions, **_report(adapted), "error": adapted.error}

        return tf.map_fn(
            one, dict(given), fn_output_signature=self._spec_of_one(), parallel_iterations=8
        )

    # -- inside ---------------------------------------------------------------------------------

    def _adapted(self, given: Arguments) -> Adapted:
        """Adapts to one task; the request fails if that fails."""
        adapter, specs = self._adapter, {**self._support_specs}
        if "support_weight" in given:
            specs["support_weight"] = tf.TensorSpec([None], tf.float32)
        checks = self._support_checks(given, specs, 0)
        time, of_time = self._time(given)
        checks += of_time
        support = self._checked({name: given[name] for name in specs}, specs, checks)
        adapted = adapter.adapt(
            _ends(support, "support_x"),
            _ends(support, "support_y"),
            support.get("support_weight"),
            time,
        )
        with tf.control_dependencies([validation.require_none(adapted.error)]):
            return tf.nest.map_structure(tf.identity, adapted)

    def _time(self, given: Arguments) -> tuple[tf.Tensor, list[Check]]:
        """Returns how long to adapt, and the checks of it: the export's time, or the request's."""
        if "final_time" not in given:
            return self._adapter.final_time(), []
        time, check = validation.checked_time(given["final_time"], self._adapter.longest_time)
        return time, [check]

    def _support_checks(self, given: Arguments, specs: Specs, axis: int) -> list[Check]:
        """Returns checks of the number of support rows, which are on an axis."""
        first = next(iter(specs))
        came = validation.as_it_came(first, given[first])
        most = self._adapter.bounds.max_support_rows
        return [
            *validation.row_checks({name: given[name] for name in specs}, axis, most),
            validation.at_least_one(first, came, axis),
        ]

    def _query_checks(self, given: Arguments, specs: Specs, axis: int) -> list[Check]:
        """Returns checks of the number of rows to predict for, which are on an axis."""
        most = self._adapter.bounds.max_query_rows
        return validation.row_checks({name: given[name] for name in specs}, axis, most)

    def _checked_tasks(self, given: Arguments) -> dict[str, tf.Tensor]:
        specs = {**self._support_specs, "support_weight": tf.TensorSpec([None], tf.float32)}
        checks = self._support_checks(given, specs, 1)
        query = _named("query_x", self._interface.inputs)
        checks += self._query_checks(given, query, 1)
        specs |= query
        if "final_time" in given:
            specs["final_time"] = tf.TensorSpec([], self._adapter.function.dtype)
        came = {name: validation.as_it_came(name, given[name]) for name in specs}
        first, *rest = came
        most = self._adapter.bounds.max_tasks
        checks += [
            *(validation.same_size(n, came[n], first, came[first], 0, "tasks") for n in rest),
            validation.at_most(first, came[first], 0, most, "tasks"),
            validation.at_least_one(first, came[first], 0, "task"),
        ]
        axes = ("tasks", "rows")
        return self._checked(given, _of_tasks(specs), checks, axes=axes, values=False)

    def _checked(
        self,
        given: Arguments,
        specs: Specs,
        checks: Sequence[Check] = (),
        axes: Sequence[str] = ("rows",),
        values: bool = True,
    ) -> dict[str, tf.Tensor]:
        """Returns what is given, which depends on assertions of its shapes and values."""
        came = {name: validation.as_it_came(name, given[name]) for name in specs}
        shapes = [
            validation.has_shape(
                name, came[name], specs[name], () if name in self._adapted_specs() else axes
            )
            for name in specs
        ]
        wrong = validation.first_failure([*shapes, *checks])
        with tf.control_dependencies([validation.require_none(wrong)]):
            fine = {
                name: tf.ensure_shape(tensor, specs[name].shape) for name, tensor in came.items()
            }
        # The values of a support set are looked at where it is adapted to.
        seen = {n: t for n, t in fine.items() if values and not n.startswith("support_")}
        sound = [
            validation.is_finite(
                name, tensor, *(["send what adapt gave"] if name in self._adapted_specs() else ())
            )
            for name, tensor in seen.items()
            if tensor.dtype.is_floating
        ]
        for begin in ("x", "query_x"):
            if x := _ends(seen, begin):
                sound += self._adapter.vocabularies.checks(begin, x)
        if not sound:
            return fine
        wrong = validation.first_failure(sound)
        with tf.control_dependencies([validation.require_none(wrong)]):
            return {name: tf.identity(tensor) for name, tensor in fine.items()}

    def _adapted_specs(self) -> dict[str, tf.TensorSpec]:
        """Returns the specs of what `adapt` gives and `predict_with` takes."""
        return {**self._interface.parameters, **self._interface.statistics}

    def _predictions(
        self, parameters: Sequence[tf.Tensor], statistics: Sequence[tf.Tensor], x: Named
    ) -> dict[str, tf.Tensor]:
        return self._named_predictions(self._adapter.predict(parameters, statistics, x))

    def _named_predictions(self, outputs: Tensors) -> dict[str, tf.Tensor]:
        found = self._adapter.named_predictions(outputs)
        for end, classes in self._interface.classes.items():
            named = classes.of(found[f"predictions{end}"])
            found[f"probabilities{end}"], found[f"classes{end}"] = named
        return found

    def _spec_of_one(self) -> dict[str, tf.TensorSpec]:
        """Returns the specs of the answer for one of several tasks."""
        dtype = self._adapter.function.dtype
        spec = _named("predictions", self._interface.outputs)
        for end, classes in self._interface.classes.items():
            like = spec[f"predictions{end}"]
            shape = [*like.shape[:-1], len(classes.names)]
            spec[f"probabilities{end}"] = tf.TensorSpec(shape, like.dtype)
            spec[f"classes{end}"] = tf.TensorSpec(shape[:-1], tf.string)
        scalar = tf.TensorSpec([], dtype)
        return {
            **spec,
            "support_loss_before": scalar,
            "support_loss_after": scalar,
            "gradient_evaluations": tf.TensorSpec([], tf.int32),
            "error": tf.TensorSpec([], tf.string),
        }


def _named(begin: str, specs: Specs) -> dict[str, tf.TensorSpec]:
    return {begin + end: spec for end, spec in specs.items()}


def _of_tasks(specs: Specs) -> dict[str, tf.TensorSpec]:
    return {name: tf.TensorSpec([None, *s.shape], s.dtype) for name, s in specs.items()}


def _ends(given: Arguments, begin: str) -> dict[str, tf.Tensor]:
    found = (name for name in given if name == begin or name.startswith(f"{begin}_"))
    return {name.removeprefix(begin): given[name] for name in found}


def _report(adapted: Adapted) -> dict[str, tf.Tensor]:
    return {
        "support_loss_before": adapted.loss_before,
        "support_loss_after": adapted.loss_after,
        "gradient_evaluations": adapted.evaluations,
    }
