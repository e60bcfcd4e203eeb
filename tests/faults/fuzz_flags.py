"""Fuzzes the flags of `amaml-train`: `python tests/faults/fuzz_flags.py --sets=2000 --seed=0`.

Every flag gets odd values alone, then sets of several flags are drawn. Each ends in settings that a
learner can be made of, or in a UsageError; `--steps` also takes a meta-step with some of the sound
ones.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import random
import sys
import time
from collections.abc import Iterator

import fuzzing
import tensorflow as tf
from absl import flags
from absl.testing import flagsaver

from amaml_tf.commands import flag_files
from amaml_tf.commands import flags as experiment_flags
from amaml_tf.experiment import Experiment
from amaml_tf.experiment.declaration import Setting, settings_of

ODD = {
    int: [
        "-1",
        "0",
        "1",
        "2",
        "7",
        "2147483647",
        "2147483648",
        "1000000",
        "9" * 30,
        "1.5",
        "",
        "x",
    ],
    float: ["-1", "0", "1e-300", "1e300", "inf", "nan", "0.1", "3", "1e-45", "9" * 400, "", "0x1"],
    bool: ["true", "false", "", "2", "TRUE"],
    str: ["", "x", "a b", "é", "x" * 500, "../..", "\udcff", "none", "0"],
}
SMALL = [
    "--jit_compile=off",
    "--hidden_units=3",
    "--num_support=2",
    "--num_query=2",
    "--meta_batch_size=2",
]


def values_of(setting: Setting) -> list[str]:
    """Returns values of a flag: odd ones, and the choices."""
    choices = list(setting.choices()) if setting.choices else []
    values = [*ODD[setting.kind], *choices]
    return [*values, "1,2", ",", "3,,4", "1,x"] if setting.is_list else values


def singles() -> Iterator[list[str]]:
    """Yields every flag with each of its values."""
    for name, setting in settings_of(Experiment).items():
        for value in values_of(setting):
            yield [f"--{name}={value}"]


def sets(rng: random.Random) -> Iterator[list[str]]:
    """Yields sets of several flags, most of them with sensible values."""
    settings = list(settings_of(Experiment).items())
    while True:
        chosen = rng.sample(settings, rng.randint(2, 6))
        yield [f"--{name}={rng.choice(values_of(setting))}" for name, setting in chosen]


def attempt(arguments: list[str], take_step: bool) -> str:
    """Makes a learner as the flags say; returns what came out."""
    with flagsaver.flagsaver():
        flags.FLAGS.unparse_flags()
        try:
            flag_files.parse(["amaml", *SMALL, *arguments])
        except SystemExit as ending:
            return fuzzing.told(str(ending.code))
        experiment = experiment_flags.read(Experiment)
    family = experiment.make_family()
    learner = experiment.make_learner(family)
    if take_step:
        episodes = family.episodes("train", batch_size=experiment.meta_batch_size, num_batches=1)
        learner.fit(episodes, verbose=0)
    return "sound"


def run(num_sets: int, num_steps: int, seed: int) -> collections.Counter[str]:
    """Tries single flags, or `num_sets` sets; returns how many ended in which way."""
    rng = random.Random(seed)
    found: collections.Counter[str] = collections.Counter()
    alone = list(singles())
    rng.shuffle(alone)
    for number, arguments in zip(range(num_sets), fuzzing.chained(alone, sets(rng)), strict=False):
        with contextlib.redirect_stderr(None):
            outcome = fuzzing.outcome(attempt, arguments, number < num_steps)
        if outcome.startswith("traceback"):
            print(" ".join(arguments)[:200], "->", outcome, flush=True)
        found[outcome.split(":")[0]] += 1
        if number % 50 == 0:
            tf.keras.backend.clear_session()
    return found


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sets", type=int, default=2000)
    parser.add_argument("--steps", type=int, default=0)
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    start = time.monotonic()
    counts = run(asked.sets, asked.steps, asked.seed)
    fuzzing.report("flags", counts, time.monotonic() - start)
    sys.exit(bool(counts["traceback"] or counts["slow"]))
