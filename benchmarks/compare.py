"""Compares meta-learning algorithms on one family of tasks, with the same budget for each.

    python -m benchmarks.compare --flagfile=configs/compare/alpine_50.cfg --output=FOLDER

Flags of `amaml-train` are the settings that all methods share; each method has its own beside them:

    --method="MAML: algorithm=maml,num_steps=5,search.step_size=0.01|0.1"

An empty value (`rtol=`) leaves a setting to its default, and + stands between the items of a list
(`hidden_units=32+32`). --search and search.NAME name values to choose from: every combination is
trained with one seed and measured on the validation split, and the best goes on to training with
all seeds and to the test split. Every finished run is a file; the same command goes on where it
was stopped.
"""

from __future__ import annotations

import dataclasses
import math
import pathlib
import signal
import sys
import traceback
from collections.abc import Callable, Sequence
from typing import Any

from absl import flags

from amaml_tf import commands
from amaml_tf.experiment import Experiment
from benchmarks.methods import Method, parse_methods
from benchmarks.provenance import provenance
from benchmarks.report import Outcome, sign, summary, write_report
from benchmarks.runs import Run, result_of
from benchmarks.workers import Here, Workers, crew, serve

_METHOD = flags.DEFINE_multi_string("method", [], 'A method, "LABEL: NAME=VALUE,...".')
_SEARCH = flags.DEFINE_multi_string("search", [], "Values to try, NAME=VALUE,VALUE,...")
_SEEDS = flags.DEFINE_list("seeds", ["0", "1", "2"], "Seeds of the final runs.")
_SEARCH_SEED = flags.DEFINE_integer("search_seed", 1000, "Seed of the search's runs.")
_SEARCH_META_STEPS = flags.DEFINE_integer(
    "search_meta_steps", 300, "Meta-updates of the search's runs."
)
_BUDGET_SECONDS = flags.DEFINE_float(
    "budget_seconds",
    None,
    "Seconds of training, from the end of the first meta-step (so without compilation) and without "
    "evaluations. Training also ends after --num_meta_steps.",
)
_BUDGET_DECAY = flags.DEFINE_bool(
    "budget_decay",
    False,
    "The meta learning rate falls to 0 along a cosine over --budget_seconds, as it does with "
    "--decay_steps over meta-steps.",
)
_SEARCH_BUDGET_SECONDS = flags.DEFINE_float(
    "search_budget_seconds",
    None,
    "Seconds of training of the search's runs, in place of --search_meta_steps: where the budget "
    "is of seconds, so should the search be.",
)
_CURVE_POINTS = flags.DEFINE_integer(
    "curve_points", 5, "How often to measure during training, each time after twice as much of it."
)
_CURVE_EPISODES = flags.DEFINE_integer(
    "num_curve_episodes", 50, "Test episodes of each of these measurements."
)
_METRIC = flags.DEFINE_string("metric", None, "By what to choose. Default: accuracy, or rmse.")
_STOP = flags.DEFINE_enum(
    "stop",
    "last",
    ["last", "validation"],
    "By what the search chooses: the metric at the end of adaptation, or where it is best for "
    "validation tasks. The table has both.",
)
_PARALLEL = flags.DEFINE_integer("parallel", 1, "Runs at a time, each in a process of its own.")
_OUTPUT = flags.DEFINE_string("output", None, "Folder for runs, table, numbers and figures.")
_WORKER = flags.DEFINE_string("worker", None, "Used by the program itself: does runs in FOLDER.")


class Comparison:
    """All runs of a comparison: a search for each method, then the final runs.

    Args:
        shared: settings of all methods.
        methods: what to compare.
        folder: of the comparison.
        metric: name of the metric to choose by.
    """

    def __init__(
        self, shared: Experiment, methods: Sequence[Method], folder: pathlib.Path, metric: str
    ) -> None:
        self._shared = dataclasses.asdict(shared)
        self._methods = methods
        self._folder = folder
        self._metric = metric

    def check(self) -> None:
        """Raises ValueError if the settings of a candidate are wrong."""
        _check_budget(self._shared["decay_steps"])
        for method in self._methods:
            for number, settings in enumerate(method.candidates()):
                experiment = self._search_run(method, number, settings).experiment()
                experiment.make_algorithm()
                experiment.make_optimizer()
                experiment.make_eval_optimizer()

    def do(self, doer: Here | Workers) -> list[Outcome]:
        """Does what is left to do of search and final runs; returns what was found."""
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
            # A choice that diverges in the end gives way to the next best.
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
                        strict=False,  # a method without a choice has no search
                    )
                ),
                {run.settings["seed"]: self._result(run) for run in finals[method.label]},
                refused[method.label],
            )
            for method in self._methods
        ]

    @staticmethod
    def _seed_by_seed(methods: Sequence[Method], finals: dict[str, list[Run]]) -> list[Run]:
        """The runs in an order in which an unfinished comparison has something of every method.

        Within a seed that of `methods`: the longest should come first, or the last run would leave
        the other cores with nothing to do.
        """
        runs = (run for method in methods for run in finals[method.label])
        return sorted(runs, key=lambda run: run.settings["seed"])

    def _seconds(self, searches: list[Run], ranked: list[int]) -> float:
        """What a candidate took in the search; 0 if nothing is known of it."""
        if not searches or not ranked:
            return 0.0
        return float(self._result(searches[ranked[0]])["seconds"])

    def _failure(self, runs: list[Run]) -> str:
        """Why one of the runs failed; nothing if none did."""
        return next((r["failed"] for run in runs if "failed" in (r := self._result(run))), "")

    def _searches(self, method: Method) -> list[Run]:
        candidates = method.candidates()
        if len(candidates) == 1:
            return []
        return [self._search_run(method, *each) for each in enumerate(candidates)]

    def _search_run(self, method: Method, number: int, settings: dict[str, Any]) -> Run:
        run = self._shared | settings
        run |= {"seed": _SEARCH_SEED.value, "eval_split": "validation"}
        name = f"search/{method.folder}/candidate_{number}"
        # A search run is a short final run: its learning rate falls as far.
        if _SEARCH_BUDGET_SECONDS.value is not None:
            return Run(name, run, _SEARCH_BUDGET_SECONDS.value, _BUDGET_DECAY.value)
        for steps in ("num_meta_steps", "decay_steps"):
            if run[steps] is not None:
                run[steps] = min(run[steps], _SEARCH_META_STEPS.value)
        return Run(name, run)

    def _finals(self, method: Method, ranked: list[int]) -> list[Run]:
        settings = self._chosen(method, ranked)
        if settings is None:
            return []
        return [
            Run(
                f"runs/{method.folder}/candidate_{ranked[0]}/seed_{seed}",
                self._shared | settings | {"seed": int(seed), "eval_split": "test"},
                _BUDGET_SECONDS.value,
                _BUDGET_DECAY.value,
                _CURVE_POINTS.value,
                _CURVE_EPISODES.value,
            )
            for seed in _SEEDS.value
        ]

    def _chosen(self, method: Method, ranked: list[int]) -> dict[str, Any] | None:
        """The settings of the first of the candidates; None if there is none left."""
        return method.candidates()[ranked[0]] if ranked else None

    def _ranked(self, method: Method, searches: list[Run]) -> list[int]:
        """The numbers of the candidates that did not fail, best first."""
        if not searches:
            return [0]
        scores = [self._score(self._result(run)) for run in searches]
        finite = [number for number, score in enumerate(scores) if math.isfinite(score)]
        return sorted(finite, key=scores.__getitem__)

    def _score(self, result: dict[str, Any]) -> float:
        """What is to be small: infinite if a candidate, or one of its episodes, failed."""
        if "failed" in result or result["evaluation"]["num_failed_episodes"]:
            return math.inf
        evaluation = result["evaluation"]
        measures = evaluation["after"]
        if self._metric not in measures:
            raise ValueError(
                f"Expected metric to be one of {', '.join(measures)}, got {self._metric!r}; use "
                "one of them."
            )
        if _STOP.value == "last":
            return sign(self._metric) * measures[self._metric]["mean"]
        points = (point["measures"][self._metric]["mean"] for point in evaluation["curve"])
        return min(sign(self._metric) * value for value in points)

    def _result(self, run: Run) -> dict[str, Any]:
        result = result_of(run, self._folder)
        if result is None:
            raise RuntimeError(f"Expected a result of {run.name}, got none; this is a bug.")
        return result

    def _do_missing(self, what: str, doer: Here | Workers, runs: list[Run]) -> None:
        """Does the runs that have no result yet, and prints a line for each."""
        missing = [run for run in runs if result_of(run, self._folder) is None]
        print(f"{what}: {len(runs)} runs, {len(missing)} to do", flush=True)
        left = len(missing)

        def report(run: Run, result: dict[str, Any]) -> None:
            nonlocal left
            left -= 1
            print(f"{run.name:44} {_numbers(result, self._metric)}  ({left} left)", flush=True)

        doer.do(missing, report)


def _check_budget(decay_steps: int | None) -> None:
    budget, search, decay = _BUDGET_SECONDS, _SEARCH_BUDGET_SECONDS, _BUDGET_DECAY.value
    for flag in (budget, search):
        if flag.value is not None and not flag.value > 0:
            raise ValueError(
                f"Expected --{flag.name} above 0, got {flag.value:g}; pass a positive number."
            )
    if (decay or search.value is not None) and budget.value is None:
        name = _BUDGET_DECAY.name if decay else search.name
        raise ValueError(
            f"Expected --budget_seconds with --{name}, got none; pass the seconds of a final run."
        )
    if decay and search.value is None:
        raise ValueError(
            f"Expected --{search.name} with --budget_decay, got none; pass the seconds of a run of "
            "the search, over which its rate falls as that of a final run does."
        )
    if decay and decay_steps is not None:
        raise ValueError(
            f"Expected --budget_decay or --decay_steps, got both ({decay_steps} steps); leave one "
            "out: the rate falls over seconds, or over meta-steps."
        )


def _numbers(result: dict[str, Any], metric: str) -> str:
    if "failed" in result:
        return f"failed: {result['failed'][:80]}"
    after = result["evaluation"]["after"].get(metric, {"mean": math.nan, "half_width": math.nan})
    return (
        f"{metric} {after['mean']:.4f} ± {after['half_width']:.4f}  "
        f"{result['meta_steps']} meta-steps in {result['first_step_seconds']:.1f} + "
        f"{result['seconds']:.1f} s, evaluation {result['evaluation_seconds']:.1f} s"
    )


def main() -> None:
    """Compares as the flags say, or serves as a worker."""
    if _WORKER.value:
        serve(pathlib.Path(_WORKER.value))
        return
    folder = output()
    shared = commands.experiment()
    metric = _METRIC.value or _usual_metric(shared)
    comparison = Comparison(shared, parse_methods(_METHOD.value, _SEARCH.value), folder, metric)
    comparison.check()
    folder.mkdir(parents=True, exist_ok=True)
    with crew(folder, _PARALLEL.value) as doer:
        outcomes = comparison.do(doer)
    write_report(folder, outcomes, metric, provenance("benchmarks.compare"))
    for outcome in outcomes:
        spreads = summary(outcome, metric)
        text = f"{spreads['after'].mean:.4f}" if spreads else "failed"
        print(f"{outcome.method.label:24} {metric} {text}")
    print(f"Written to {folder}/table.md, results.json, results.csv and figures.", flush=True)


def output() -> pathlib.Path:
    """Returns the folder that --output names.

    Raises:
        ValueError: there is no such flag.
    """
    if not _OUTPUT.value:
        raise ValueError("Expected --output, a folder for the results, got none; pass it.")
    return pathlib.Path(_OUTPUT.value).expanduser()


def told(program: Callable[[], None] = main) -> None:
    """Calls `program`; a mistake found in this folder is told in one sentence."""
    try:
        program()
    except (ValueError, RuntimeError) as error:
        innermost = traceback.extract_tb(error.__traceback__)[-1]
        if pathlib.Path(innermost.filename).parent != pathlib.Path(__file__).parent:
            raise
        sys.exit(f"{pathlib.Path(sys.argv[0]).stem}: {error}")


def _usual_metric(shared: Experiment) -> str:
    # By name, because making the family would load its data here, where it is not needed.
    regression = ("sinusoid", "cosmixture", "alpine", "movielens", "ratings")
    return "rmse" if shared.task.startswith(regression) else "accuracy"


def _end(*_: Any) -> None:
    sys.exit(143)  # so that workers are ended too


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, _end)
    commands.run(told)
