"""The order of a comparison: the search of every method, then the final runs."""

from __future__ import annotations

import dataclasses
import math
import pathlib
from collections.abc import Sequence
from typing import Any

from amaml_tf.comparison.methods import Method
from amaml_tf.comparison.outcome import Outcome, sign
from amaml_tf.comparison.plan import Plan
from amaml_tf.comparison.runs import Run, result_of
from amaml_tf.comparison.workers import Here, Workers
from amaml_tf.errors import UsageError
from amaml_tf.experiment import Experiment


class Comparison:
    """All runs of a comparison: a search for each method, then the final runs.

    Args:
        shared: settings that all methods share.
        methods: the methods to compare.
        plan: seeds and budgets.
        folder: folder of the comparison.
    """

    def __init__(
        self, shared: Experiment, methods: Sequence[Method], plan: Plan, folder: pathlib.Path
    ) -> None:
        self._kind = type(shared)
        self._shared = dataclasses.asdict(shared)
        self._methods = methods
        self._plan = plan
        self._folder = folder

    def check(self) -> None:
        """Raises UsageError if the settings of a candidate are invalid."""
        self._plan.require_one_decay(self._shared["decay_steps"])
        for method in self._methods:
            for number, settings in enumerate(method.candidates()):
                experiment = self._search_run(method, number, settings).experiment(self._kind)
                experiment.make_algorithm()
                experiment.make_optimizer()
                experiment.make_eval_optimizer()

    def do(self, doer: Here | Workers) -> list[Outcome]:
        """Does the missing runs of the search and the final runs; returns the outcomes."""
        searches = {m.label: self._searches(m) for m in self._methods}
        self._do_missing("search", doer, [run for runs in searches.values() for run in runs])
        ranked = {m.label: self._ranked(m, searches[m.label]) for m in self._methods}
        refused: dict[str, list[tuple[dict[str, Any], str]]] = {m.label: [] for m in self._methods}
        finals: dict[str, list[Run]] = {}
        waiting = list(self._methods)
        while waiting:
            for method in waiting:
                finals[method.label] = self._finals(method, ranked[method.label])
            seconds = {m.label: self._seconds(searches[m.label], ranked[m.label]) for m in waiting}
            waiting = sorted(waiting, key=lambda m: seconds[m.label], reverse=True)
            self._do_missing("final runs", doer, self._seed_by_seed(waiting, finals))
            # If a chosen candidate diverges in a final run, the next best one replaces it.
            diverged = {m.label: self._failure(finals[m.label]) for m in waiting}
            waiting = [m for m in waiting if diverged[m.label] and len(ranked[m.label]) > 1]
            for method in waiting:
                settings = method.candidates()[ranked[method.label].pop(0)]
                refused[method.label].append((settings, diverged[method.label]))
        return [
            Outcome(
                method,
                self._chosen(method, ranked[method.label]),
                list(
                    zip(
                        method.candidates(),
                        map(self._result, searches[method.label]),
                        strict=False,  # a method with one candidate has no search
                    )
                ),
                {run.settings["seed"]: self._result(run) for run in finals[method.label]},
                refused[method.label],
            )
            for method in self._methods
        ]

    @staticmethod
    def _seed_by_seed(methods: Sequence[Method], finals: dict[str, list[Run]]) -> list[Run]:
        """Returns the runs seed by seed, so that an unfinished comparison has runs of every method.

        Within a seed they are in the order of `methods`. The longest should come first, or the last
        run would leave the other cores idle.
        """
        runs = (run for method in methods for run in finals[method.label])
        return sorted(runs, key=lambda run: run.settings["seed"])

    def _seconds(self, searches: list[Run], ranked: list[int]) -> float:
        """Returns the seconds of the best candidate's search run; 0 if unknown."""
        if not searches or not ranked:
            return 0.0
        return float(self._result(searches[ranked[0]])["seconds"])

    def _failure(self, runs: list[Run]) -> str:
        """Returns why one of the runs failed; an empty text if none did."""
        return next((r["failed"] for run in runs if "failed" in (r := self._result(run))), "")

    def _searches(self, method: Method) -> list[Run]:
        candidates = method.candidates()
        if len(candidates) == 1:
            return []
        return [self._search_run(method, *each) for each in enumerate(candidates)]

    def _search_run(self, method: Method, number: int, settings: dict[str, Any]) -> Run:
        run = self._shared | settings
        run |= {"seed": self._plan.search_seed, "eval_split": "validation"}
        name = f"search/{method.folder}/candidate_{number}"
        # A search run is a short final run: its learning rate falls to the same value.
        if self._plan.search_budget_seconds is not None:
            return Run(name, run, self._plan.search_budget_seconds, self._plan.budget_decay)
        for steps in ("num_meta_steps", "decay_steps"):
            if run[steps] is not None:
                run[steps] = min(run[steps], self._plan.search_meta_steps)
        return Run(name, run)

    def _finals(self, method: Method, ranked: list[int]) -> list[Run]:
        settings = self._chosen(method, ranked)
        if settings is None:
            return []
        return [
            Run(
                f"runs/{method.folder}/candidate_{ranked[0]}/seed_{seed}",
                self._shared | settings | {"seed": seed, "eval_split": "test"},
                self._plan.budget_seconds,
                self._plan.budget_decay,
                self._plan.curve_points,
                self._plan.num_curve_episodes,
            )
            for seed in self._plan.seeds
        ]

    def _chosen(self, method: Method, ranked: list[int]) -> dict[str, Any] | None:
        """Returns the settings of the best candidate that is left; None if there is none."""
        return method.candidates()[ranked[0]] if ranked else None

    def _ranked(self, method: Method, searches: list[Run]) -> list[int]:
        """Returns the numbers of the candidates that did not fail, best first."""
        if not searches:
            return [0]
        scores = [self._score(self._result(run)) for run in searches]
        finite = [number for number, score in enumerate(scores) if math.isfinite(score)]
        return sorted(finite, key=scores.__getitem__)

    def _score(self, result: dict[str, Any]) -> float:
        """Returns a score, lower is better: infinite if a run, or one of its episodes, failed."""
        if "failed" in result or result["evaluation"]["num_failed_episodes"]:
            return math.inf
        evaluation, metric = result["evaluation"], self._metric(result)
        measures = evaluation["after"]
        if metric not in measures:
            raise UsageError(
                f"Expected metric to be one of {', '.join(measures)}, got {metric!r}; use one of "
                "them."
            )
        if self._plan.stop == "last":
            return sign(metric) * measures[metric]["mean"]
        points = (point["measures"][metric]["mean"] for point in evaluation["curve"])
        return min(sign(metric) * value for value in points)

    def metric(self, outcomes: Sequence[Outcome]) -> str:
        """Returns the metric to choose by: the plan's, or the default of the tasks."""
        finished = (result for outcome in outcomes for result in outcome.finished)
        return self._metric(next(finished, {}))

    def _metric(self, result: dict[str, Any]) -> str:
        measures = result.get("evaluation", {}).get("after", {"loss": None})
        return self._plan.metric or list(measures)[-1]

    def _result(self, run: Run) -> dict[str, Any]:
        result = result_of(run, self._folder)
        if result is None:
            raise RuntimeError(f"Expected a result of {run.name}, got none; please report this.")
        return result

    def _do_missing(self, what: str, doer: Here | Workers, runs: list[Run]) -> None:
        """Does the runs that have no result yet, and prints a line for each."""
        missing = [run for run in runs if result_of(run, self._folder) is None]
        print(f"{what}: {len(runs)} runs, {len(missing)} to do", flush=True)
        left = len(missing)

        def report(run: Run, result: dict[str, Any]) -> None:
            nonlocal left
            left -= 1
            print(
                f"{run.name:44} {_numbers(result, self._metric(result))}  ({left} left)", flush=True
            )

        doer.do(missing, report)


def _numbers(result: dict[str, Any], metric: str) -> str:
    if "failed" in result:
        return f"failed: {result['failed'][:80]}"
    after = result["evaluation"]["after"].get(metric, {"mean": math.nan, "half_width": math.nan})
    return (
        f"{metric} {after['mean']:.4f} ± {after['half_width']:.4f}  "
        f"{result['meta_steps']} meta-steps in {result['first_step_seconds']:.1f} + "
        f"{result['seconds']:.1f} s, evaluation {result['evaluation_seconds']:.1f} s"
    )
