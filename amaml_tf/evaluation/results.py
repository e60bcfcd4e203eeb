"""The results of an evaluation: numbers, a table and files."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import pathlib

from amaml_tf.aliases import PathLike
from amaml_tf.evaluation.statistics import Estimate
from amaml_tf.files import write_atomically

EVALUATION_FILE = "evaluation.json"


@dataclasses.dataclass(frozen=True)
class CurvePoint:
    """Query loss and metrics by name, after a time or a number of steps of adaptation.

    Attributes:
        at: the time or the number of steps.
        measures: means with their intervals.
        values: the values behind the means: one per episode, or one per task where tasks repeat.
            With them, learners can be compared on the same tasks, pair by pair.
    """

    at: float
    measures: dict[str, Estimate]
    values: dict[str, list[float]]


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """The results of an initialization on unseen episodes.

    Attributes:
        num_episodes: number of episodes measured.
        num_failed_episodes: number of further episodes that failed and are left out
            (`on_failure="drop"`).
        num_tasks: number of tasks that the episodes come from, where tasks repeat. The estimates
            are then over tasks, each with the mean of its episodes. None: over episodes.
        before: query loss and metrics of the initialization itself, by name.
        after: the same after adaptation to the support sets.
        gradient_evaluations: number of gradient evaluations in the inner run.
        unit: unit of the curve: "time" (of the flow) or "step" (of an optimizer).
        curve: the same measurements during adaptation, from 0 (`before`) to the end (`after`), all
            on the same episodes.
        gradient_evaluations_p99: the number of gradient evaluations that 99% of the episodes did
            not need more of; None: unknown.
        query_statistics: whose statistics batch normalization used in predictions for a query set:
            "support" (of the support set), "batch" (of the query set: transductive) or "stored";
            None: the model has no batch normalization.
    """

    num_episodes: int
    num_failed_episodes: int
    num_tasks: int | None
    before: dict[str, Estimate]
    after: dict[str, Estimate]
    gradient_evaluations: Estimate
    unit: str
    curve: list[CurvePoint]
    gradient_evaluations_p99: int | None = None
    query_statistics: str | None = None

    def table(self) -> str:
        """Returns a table in plain text: before, after, and the curve if it has more points."""
        counted = f"{self.num_episodes} episodes"
        if self.num_tasks is not None:
            counted += f", {self.num_tasks} tasks"
        lines = [f"{counted:<26}{'before adaptation':>22}{'after adaptation':>22}"]
        lines += [
            f"{name:<26}{self.before[name]!s:>22}{self.after[name]!s:>22}" for name in self.after
        ]
        lines.append(f"{'gradient evaluations':<26}{'':>22}{self.gradient_evaluations!s:>22}")
        if self.num_failed_episodes:
            lines.append(f"{'failed, left out':<26}{'':>22}{self.num_failed_episodes!s:>22}")
        if self.query_statistics is not None:
            lines.append(f"{'batch normalization by':<26}{'':>22}{self.query_statistics:>22}")
        if len(self.curve) > 2:
            lines.append(self._rows_of_curve())
        over = "episodes" if self.num_tasks is None else "tasks, of each one's mean over episodes"
        return "\n".join([*lines, f"(mean over {over} ± half width of its 95% interval)"])

    def _rows_of_curve(self) -> str:
        names = list(self.after)
        heads = [f"{'after ' + self.unit:<26}", *(f"{name:>22}" for name in names)]
        rows = ["".join(heads)]
        for point in self.curve:
            estimates = (f"{point.measures[name]!s:>22}" for name in names)
            rows.append(f"{point.at:<26g}" + "".join(estimates))
        return "\n".join(rows)

    def write(self, path: PathLike, **context: object) -> None:
        """Writes the estimates, and `context` (what was evaluated), to a JSON file.

        The curve is also written to a CSV file of the same name beside it, with the columns `time`
        or `step`, `metric`, `mean` and `half_width`, and a row for every point and metric. It is
        written first.
        """
        values = {**context, "confidence": 0.95, **dataclasses.asdict(self)}
        values["curve"] = [
            {self.unit: point["at"], **point["measures"]} for point in values["curve"]
        ]
        # The JSON file comes last: an evaluation that has it is complete.
        write_atomically(pathlib.Path(path).with_suffix(".csv"), self._csv())
        write_atomically(path, json.dumps(values, indent=2) + "\n")

    def _csv(self) -> str:
        text = io.StringIO()
        rows = csv.writer(text, lineterminator="\n")
        rows.writerow([self.unit, "metric", "mean", "half_width"])
        for point in self.curve:
            for name, estimate in point.measures.items():
                rows.writerow([f"{point.at:g}", name, estimate.mean, estimate.half_width])
        return text.getvalue()
