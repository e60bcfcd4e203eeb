"""The contract of an export, written in it: what it takes and gives, and where it comes from."""

from __future__ import annotations

import dataclasses
import datetime
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import keras
import tensorflow as tf

from amaml_tf.algorithms.flow_based import FlowBased
from amaml_tf.aliases import PathLike
from amaml_tf.errors import ExportNotFoundError, UsageError
from amaml_tf.files import write_atomically
from amaml_tf.learner.meta_learner import MetaLearner
from amaml_tf.provenance import provenance
from amaml_tf.saved_model.adapting import Adapter
from amaml_tf.saved_model.card import model_card
from amaml_tf.saved_model.interface import Interface, Specs, statistics_of
from amaml_tf.saved_model.signatures import Signature
from amaml_tf.saved_model.versions import EXTRA, find_version
from amaml_tf.user_files import read_json

CONTRACT = EXTRA / "initialization.json"
CARD = EXTRA / "README.md"
FORMAT = 1

#: What every contract of this format has.
_NAMES = {
    *("created", "algorithm", "task", "final_time", "solver", "loss", "meta_step", "inputs"),
    *("targets", "outputs", "parameters", "units_in_words", "class_names", "bounds"),
    *("batch_normalization", "signatures", "evaluation", "versions", "commit"),
}

#: Plain values, as JSON has them.
Contract: TypeAlias = dict[str, Any]


def contract_of(
    learner: MetaLearner,
    adapter: Adapter,
    signatures: Sequence[Signature],
    outputs: Mapping[str, Specs],
    about: Mapping[str, object],
) -> Contract:
    """Returns the contract of an export.

    Args:
        learner: what is exported.
        adapter: how it adapts.
        signatures: of the export.
        outputs: what each signature gives.
        about: what is known of it: task, settings, meta_step, evaluation, statistics_of (the
            number of tasks that the stored statistics are of).
    """
    interface, model = adapter.interface, learner.model
    normalizes = _normalizes(model)
    units = None if interface.units is None else interface.units.summary()
    found = provenance("save_initialization", ())
    return {
        "format": FORMAT,
        "created": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "algorithm": type(learner.algorithm).__name__,
        "task": about.get("task"),
        "final_time": float(adapter.final_time()),
        "solver": _solver(learner),
        "loss": _loss_name(learner),
        "settings": about.get("settings"),
        "meta_step": about.get("meta_step"),
        "inputs": {f"x{end}": _spec(spec) for end, spec in interface.inputs.items()},
        "targets": {f"y{end}": _spec(spec) for end, spec in interface.targets.items()},
        "outputs": {f"predictions{e}": _spec(spec) for e, spec in interface.outputs.items()},
        "parameters": _parameters(learner, adapter),
        "units": units,
        "units_in_words": None if interface.units is None else interface.units.describe(),
        "class_names": _class_names(interface),
        "tokens": _tokens(adapter),
        "batch_normalization": _statistics(adapter, normalizes),
        "stored_statistics": _stored(normalizes, about.get("statistics_of")),
        "bounds": {
            **dataclasses.asdict(adapter.bounds),
            "max_final_time": adapter.longest_time if adapter.takes_final_time else None,
        },
        "signatures": {
            each.name: {
                "inputs": {name: _spec(spec) for name, spec in each.specs.items()},
                "outputs": {name: _spec(spec) for name, spec in outputs[each.name].items()},
                "may_be_batched": each.name.endswith("_batch") or each.name == "serving_default",
            }
            for each in signatures
        },
        "evaluation": about.get("evaluation"),
        "versions": found["versions"],
        "commit": found["commit"],
    }


def write_contract(folder: Path, contract: Contract) -> None:
    """Writes the contract and the model card into the version in `folder`."""
    contract = _finite(contract)
    write_atomically(folder / CONTRACT, json.dumps(contract, indent=2, allow_nan=False) + "\n")
    write_atomically(folder / CARD, model_card(contract))


def _finite(value: Any) -> Any:
    """Returns plain values with None for numbers that JSON does not have."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, Mapping):
        return {name: _finite(each) for name, each in value.items()}
    return [_finite(each) for each in value] if isinstance(value, list | tuple) else value


def read_contract(directory: PathLike) -> Contract:
    """Returns the contract of an export: of the highest version, or of the version given.

    Raises:
        ExportNotFoundError: there is no export, or one without a contract.
        UsageError: the file is damaged, or of another version of this library.
    """
    path = find_version(directory) / CONTRACT
    if not path.is_file():
        raise ExportNotFoundError(
            f"Expected an export with a contract, got none in {path.parent}; export the "
            "initialization again with this version."
        )
    expected = "the contract of an export"
    found = read_json(path, expected)
    number = found.get("format") if isinstance(found, dict) else None
    if not isinstance(found, dict) or number != FORMAT or _NAMES - found.keys():
        raise UsageError(
            f"Expected {expected} of format {FORMAT}, got {path} of format {number!r}, or a part "
            "of one; export the initialization again with this version."
        )
    return found


def describe(directory: PathLike) -> str:
    """Returns the model card of an export, in Markdown; arguments and errors: `read_contract`."""
    return model_card(read_contract(directory))


def _spec(spec: tf.TensorSpec) -> dict[str, object]:
    return {"dtype": spec.dtype.name, "shape": spec.shape.as_list()}


def _parameters(learner: MetaLearner, adapter: Adapter) -> list[dict[str, object]]:
    variables, flags = learner.model.trainable_variables, adapter.function.adapted
    return [
        {
            "name": name,
            "layer": variable.path.rpartition("/")[0],
            **_spec(spec),
            "adapted": adapted,
        }
        for (name, spec), variable, adapted in zip(
            adapter.interface.parameters.items(), variables, flags, strict=True
        )
    ]


def _solver(learner: MetaLearner) -> dict[str, object] | None:
    if not isinstance(learner.algorithm, FlowBased):
        return None
    solver = learner.algorithm.flow.solver
    wanted = ("rtol", "atol") if solver.adaptive else ("step_size",)
    return {"name": type(solver).__name__, **{name: getattr(solver, name) for name in wanted}}


def _loss_name(learner: MetaLearner) -> str:
    given = learner.function.loss.given
    return getattr(given, "name", None) or getattr(given, "__name__", None) or str(given)


def _class_names(interface: Interface) -> list[str] | dict[str, list[str]]:
    """Returns the names of the classes of the only output, or by the predictions of outputs."""
    named = {f"predictions{end}": list(each.names) for end, each in interface.classes.items()}
    return named.get("predictions", named) or []


def _tokens(adapter: Adapter) -> dict[str, object]:
    """Returns which tokens layers know, and where this is not looked at."""
    known, interface = adapter.vocabularies, adapter.interface
    looked_at = {end for each in known.all for end in each.inputs}
    integers = [e for e, spec in interface.inputs.items() if spec.dtype.is_integer]
    if interface.units is not None:
        integers = []
    return {
        "known": [
            {
                "layer": each.layer,
                "inputs": [f"x{end}" for end in each.inputs],
                "from": 0,
                "to": each.size - 1,
            }
            for each in dict.fromkeys(known.all)
        ],
        "unchecked": {
            "layers": sorted(set(known.hidden)),
            "inputs": [f"x{end}" for end in integers if end not in looked_at],
        },
    }


def _statistics(adapter: Adapter, normalizes: bool) -> str | None:
    """Returns whose statistics predictions after adaptation use; None without normalization."""
    if not normalizes:
        return None
    if not statistics_of(adapter.function):
        return "stored"
    return "support" if adapter.interface.statistics else "batch"


def _normalizes(model: keras.Model) -> bool:
    layers = model._flatten_layers()  # noqa: SLF001 - Keras has no public recursive list
    return any(isinstance(layer, keras.layers.BatchNormalization) for layer in layers)


def _stored(normalizes: bool, num_tasks: object) -> dict[str, object] | None:
    """Returns whose statistics `serving_default` uses; None without batch normalization."""
    if not normalizes:
        return None
    if num_tasks is None:
        return {"of": "the model as it was given", "num_tasks": None}
    return {"of": "support sets of training tasks", "num_tasks": num_tasks}
