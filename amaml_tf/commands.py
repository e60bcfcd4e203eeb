"""What the commands share: flags, the settings they stand for, and how a mistake is told."""

from __future__ import annotations

import dataclasses
import pathlib
import sys
import traceback
import typing
from collections.abc import Callable
from typing import Any

from absl import app, flags, logging

from amaml_tf import execution, plots
from amaml_tf.evaluation import Evaluation
from amaml_tf.experiment import MAY_CHANGE_IN_EVALUATION, Experiment
from amaml_tf.failure import AdaptationError
from amaml_tf.meta_learner import MetaLearner
from amaml_tf.tasks import TaskFamily

FLAGS = flags.FLAGS

_PACKAGE = pathlib.Path(__file__).parent
_NUMBERS = {int: ("whole numbers", "32,32"), float: ("numbers", "0.5,5")}
_DEFINE: dict[type, Callable[..., Any]] = {
    str: flags.DEFINE_string,
    int: flags.DEFINE_integer,
    float: flags.DEFINE_float,
    bool: flags.DEFINE_bool,
    tuple: flags.DEFINE_list,
}


def _define_flags() -> None:
    """A flag for every setting of an experiment, and those that name a place."""
    hints = typing.get_type_hints(Experiment)
    for field in dataclasses.fields(Experiment):
        alternatives = typing.get_args(hints[field.name]) or (hints[field.name],)
        kind = typing.get_origin(alternatives[0]) or alternatives[0]  # the other may be None
        _DEFINE[kind](field.name, field.default, field.metadata["meaning"])
    flags.DEFINE_string(
        "workdir", None, "Folder of the run: its settings, checkpoints, logs and evaluation."
    )


_define_flags()


def workdir() -> pathlib.Path:
    """Returns the folder that --workdir names.

    Raises:
        ValueError: there is no such flag.
    """
    if not FLAGS.workdir:
        raise ValueError(
            "Expected --workdir, the folder of the run, got none; pass --workdir=FOLDER."
        )
    return pathlib.Path(FLAGS.workdir).expanduser()


def experiment() -> Experiment:
    """Returns the settings that all flags together stand for."""
    return Experiment(
        **{field.name: _value(field.name) for field in dataclasses.fields(Experiment)}
    )


def trained_experiment() -> Experiment:
    """Returns the settings of the run in --workdir, with those in place that flags give anew.

    Raises:
        ValueError: there is no run, or a flag asks for another model or task than it has.
    """
    folder = workdir()
    stored = Experiment.read(folder)
    names = [field.name for field in dataclasses.fields(Experiment)]
    given = {name: _value(name) for name in names if FLAGS[name].present}
    changed = dataclasses.replace(stored, **given)
    changed.refuse_unless_like(stored, folder, MAY_CHANGE_IN_EVALUATION)
    return changed


def _value(name: str) -> Any:
    value = FLAGS[name].value
    if not isinstance(value, list):
        return value
    (optional, *_) = typing.get_args(typing.get_type_hints(Experiment)[name])
    (kind, *_) = typing.get_args(optional)  # of the elements of `tuple[kind, ...] | None`
    try:
        return tuple(kind(each) for each in value)
    except ValueError as error:
        what, example = _NUMBERS[kind]
        raise ValueError(
            f"Expected {name} to be {what} with commas between them, got {','.join(value)!r}; "
            f"pass something like --{name}={example}."
        ) from error


def evaluate_and_report(
    settings: Experiment, family: TaskFamily, learner: MetaLearner, step: int, path: pathlib.Path
) -> Evaluation:
    """Evaluates as `settings` say, prints the table and writes the numbers to `path`."""
    evaluation = settings.evaluate(settings.make_evaluator(learner, family), family)
    print(f"\nUnseen tasks ({settings.eval_split} split) after meta-step {step}:")
    print(evaluation.table())
    path.parent.mkdir(parents=True, exist_ok=True)
    evaluation.write(path, meta_step=step, settings=dataclasses.asdict(settings))
    if settings.eval_times or settings.eval_steps:
        _draw(evaluation, settings.algorithm, path.with_suffix(".png"))
    print(f"Written to {path}.", flush=True)
    return evaluation


def _draw(evaluation: Evaluation, name: str, path: pathlib.Path) -> None:
    """Draws the curve of the family's own metric, or of the loss if there is none."""
    measure = list(evaluation.after)[-1]
    curve = [
        (point.at, estimate.mean, estimate.half_width)
        for point in evaluation.curve
        for estimate in (point.measures[measure],)
    ]
    xlabel = {"time": "inner time", "step": "steps"}[evaluation.unit]
    plots.plot_curves({name: curve}, path, xlabel=xlabel, ylabel=measure)


def run(main: Callable[[], None]) -> None:
    """Parses the flags and calls `main`; tells a user's mistake in one sentence.

    Errors that this library raises on purpose are such mistakes, or flows that fail; they end the
    command with exit status 1. All others come with their traceback. An interruption ends it with
    exit status 130, as shells expect.
    """
    name = pathlib.Path(sys.argv[0]).stem

    def guarded(arguments: list[str]) -> None:
        if not FLAGS["verbosity"].present:
            logging.set_verbosity(logging.ERROR)  # TensorFlow notes much that is no news
        execution.compile_quickly()
        try:
            if arguments[1:]:
                raise ValueError(
                    f"Expected flags alone, got {' '.join(arguments[1:])!r}; write --NAME=VALUE."
                )
            main()
        except KeyboardInterrupt as interruption:
            print(f"\n{name}: {str(interruption) or 'Interrupted.'}", file=sys.stderr)
            sys.exit(130)
        except (ValueError, AdaptationError) as error:
            if not _is_told_by_us(error):
                raise
            sys.exit(f"{name}: {error}")

    for flag in FLAGS.get_flags_for_module("amaml_tf.commands"):
        FLAGS.register_key_flag_for_module(sys.argv[0], flag)  # so that --help shows them
    app.run(guarded)


def _is_told_by_us(error: Exception) -> bool:
    """Whether our own code raised it, and not something that our code called wrongly."""
    innermost = traceback.extract_tb(error.__traceback__)[-1]
    return _PACKAGE in pathlib.Path(innermost.filename).parents
