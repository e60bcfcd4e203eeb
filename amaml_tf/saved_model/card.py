"""The model card of an export, in Markdown, from its contract."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any


def model_card(contract: Mapping[str, Any]) -> str:
    """Returns the model card of a contract."""
    parts = [
        _title(contract),
        _facts(contract),
        _examples(contract),
        _signatures(contract),
        _bounds(contract),
        _evaluation(contract),
        _parameters(contract),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _title(contract: Mapping[str, Any]) -> str:
    return (
        f"# Learned initialization{_of(contract['task'])}\n\n"
        "This SavedModel adapts itself: send a few labelled examples of a task to "
        "`adapt_and_predict`, and it answers with predictions for further inputs. "
        "`initialization.json` beside this file has the same facts for programs; "
        "`initialization.keras` is the network as a Keras model."
    )


def _of(task: str | None) -> str:
    return "" if task is None else f" for {task}"


def _facts(contract: Mapping[str, Any]) -> str:
    solver = contract["solver"] or {"name": "the algorithm's own"}
    settings = ", ".join(f"{name} {value:g}" for name, value in solver.items() if name != "name")
    rows = [
        ("algorithm", contract["algorithm"]),
        ("time of adaptation T", f"{contract['final_time']:g}"),
        ("solver", solver["name"] + (f" ({settings})" if settings else "")),
        ("loss", contract["loss"]),
        ("meta-step", contract["meta_step"]),
        ("batch normalization after adaptation", _STATISTICS[contract["batch_normalization"]]),
        ("batch normalization without", _stored_statistics(contract)),
        ("written", contract["created"]),
        ("versions", contract["versions"]),
        ("commit", contract["commit"]),
    ]
    return _table(("", ""), [row for row in rows if row[1] is not None])


_STATISTICS = {
    None: None,
    "batch": "statistics of the inputs of the request: an answer depends on the other inputs",
    "support": "statistics of the support set",
    "stored": "stored statistics",
}


def _stored_statistics(contract: Mapping[str, Any]) -> str | None:
    """Returns what the stored statistics are, by which the network predicts unadapted."""
    stored = contract.get("stored_statistics")
    if stored is None:
        return None
    used = "stored statistics (`serving_default`, `initialization.keras`): "
    if stored["num_tasks"] is None:
        return used + "those that the network had"
    return used + (
        f"averages of the means and variances of the support sets of {stored['num_tasks']} "
        "training tasks"
    )


def _examples(contract: Mapping[str, Any]) -> str:
    lines = ["## What an example is"]
    words = contract["units_in_words"]
    if words is not None:
        lines.append(f"Inputs are {words['inputs']}. Targets are {words['targets']}.")
    else:
        lines.append(
            "Requests are in the network's own units: whatever scaling was made for training is "
            "the caller's to make."
        )
    names = contract["class_names"]
    for output, each in (names if isinstance(names, Mapping) else {"": names}).items():
        if each:
            of = f" of `{output}`" if output else ""
            lines.append(f"Classes{of}, in the order of the labels: {', '.join(each)}.")
    lines += _tokens(contract.get("tokens"))
    return "\n\n".join(lines)


def _tokens(tokens: Mapping[str, Any] | None) -> list[str]:
    """Returns sentences about the tokens that requests may have."""
    if tokens is None:
        return []
    lines = [
        f"Layer `{each['layer']}` knows the tokens from {each['from']} to {each['to']}, which it "
        f"reads of {_words(each['inputs'])}. A request with others is refused."
        for each in tokens["known"]
    ]
    unchecked = tokens["unchecked"]
    if unchecked["layers"]:
        lines.append(
            f"It is not known, and not checked, whether the tokens of a request are known to "
            f"{_words(unchecked['layers'])}: tokens are read there inside a loop."
        )
    if unchecked["inputs"]:
        lines.append(
            f"It is not known, and not checked, which whole numbers {_words(unchecked['inputs'])} "
            "may have."
        )
    return lines


def _words(names: Sequence[str]) -> str:
    return " and ".join(f"`{name}`" for name in names)


def _signatures(contract: Mapping[str, Any]) -> str:
    rows = []
    for name, signature in contract["signatures"].items():
        inputs = _tensors(_without_parameters(signature["inputs"]))
        if len(signature["inputs"]) > len(_without_parameters(signature["inputs"])):
            inputs = f"the parameters that `adapt` gave, {inputs}"
        outputs = _tensors(_without_parameters(signature["outputs"]))
        if len(signature["outputs"]) > len(_without_parameters(signature["outputs"])):
            outputs = f"the parameters, {outputs}"
        rows.append((f"`{name}`", inputs, outputs, "yes" if signature["may_be_batched"] else "no"))
    return (
        "## Signatures\n\n"
        + _table(("name", "takes", "gives", "may be batched"), rows)
        + (
            "\n\nA server may join requests (dynamic batching) only where the last column says "
            "yes: elsewhere, the examples of two callers would become one task."
        )
    )


def _without_parameters(tensors: Mapping[str, Any]) -> dict[str, Any]:
    return {
        name: each
        for name, each in tensors.items()
        if not name.startswith(("parameter_", "statistic_"))
    }


def _tensors(tensors: Mapping[str, Any]) -> str:
    return ", ".join(
        f"`{name}` {each['dtype']} {_shape(each['shape'])}" for name, each in tensors.items()
    )


def _shape(shape: Sequence[int | None] | None) -> str:
    if shape is None:
        return "of any shape"
    return f"[{', '.join('any' if size is None else str(size) for size in shape)}]"


def _bounds(contract: Mapping[str, Any]) -> str:
    bounds = contract["bounds"]
    longest = bounds["max_final_time"]
    time = "" if longest is None else f"a `final_time` of {longest:g}, "
    return (
        "## Bounds of a request\n\n"
        f"At most {bounds['max_support_rows']} support rows of a task, "
        f"{bounds['max_query_rows']} rows to predict for, "
        f"{bounds['max_gradient_evaluations']} gradient evaluations of an adaptation, {time}and "
        f"{bounds['max_tasks']} tasks of a request that has several. What asks for more, and what "
        "is malformed, ends with INVALID_ARGUMENT and a sentence."
    )


def _evaluation(contract: Mapping[str, Any]) -> str:
    found = contract["evaluation"]
    if not found:
        return ""
    rows = [
        (name, _estimate(found["before"].get(name)), _estimate(after))
        for name, after in found["after"].items()
    ]
    return (
        f"## Measured on {found['num_episodes']} unseen episodes\n\n"
        + _table(("", "before adaptation", "after adaptation"), rows)
        + "\n\n(mean ± half width of its 95% interval)"
    )


def _estimate(value: Mapping[str, float | None] | None) -> str:
    if value is None:
        return ""
    mean, half_width = value["mean"], value["half_width"]
    if mean is None or half_width is None:
        return "not finite"
    return f"{mean:.4g} ± {half_width:.2g}"


def _parameters(contract: Mapping[str, Any]) -> str:
    rows = [
        (f"`{each['name']}`", each["layer"], _shape(each["shape"]), _yes(each["adapted"]))
        for each in contract["parameters"]
    ]
    return "## Parameters\n\n" + _table(("name", "layer", "shape", "adapted"), rows)


def _yes(value: bool) -> str:
    return "yes" if value else "no"


def _table(head: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    lines = [f"| {' | '.join(head)} |", f"|{'---|' * len(head)}"]
    lines += [f"| {' | '.join(map(str, row))} |" for row in rows]
    return "\n".join(lines)
