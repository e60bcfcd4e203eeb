"""The cost of sampling episodes, compared with the cost of the training steps.

    python -m benchmarks.episode_sampling --output=FOLDER --data_dir=DATA

For every flag file of `amaml-train` in --configs: seconds to draw a batch of episodes, with nothing
else to do; seconds of a meta-step on a batch that is already in memory; the ratio of the two; and
seconds of a meta-step with batches from the stream of episodes. All are medians over batches, after
a warm-up. Each experiment runs in its own process. Writes a table.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import tensorflow as tf
from absl import flags

from amaml_tf.commands import compare, running
from amaml_tf.commands import flags as settings
from amaml_tf.experiment import Experiment
from amaml_tf.files import write_atomically
from amaml_tf.provenance import provenance

_CONFIGS = flags.DEFINE_list(
    "configs",
    [
        "configs/sinusoid.cfg",
        "configs/cosmixture.cfg",
        "configs/alpine.cfg",
        "configs/movielens_100k.cfg",
        "configs/omniglot_5way_1shot_small.cfg",
    ],
    "Flag files of amaml-train.",
)
_ALONE = flags.DEFINE_bool("alone", False, "Used by the program itself: measure the flags given.")

_WARM_UP, _COUNT = 10, 100


@dataclasses.dataclass(frozen=True)
class Cost:
    """Seconds, each the median over batches.

    Attributes:
        draw: to draw a batch of episodes.
        step: for a meta-step on a batch in memory.
        fed_step: for a meta-step and the wait for its batch, while the stream draws the next ones.
    """

    draw: float
    step: float
    fed_step: float


def cost() -> Cost:
    """Returns the cost of the experiment that the flags define."""
    experiment = settings.read(Experiment)
    family = experiment.make_family()
    learner = experiment.make_learner(family)
    learner.make_train_function()
    step = learner.train_function
    episodes = family.episodes("train", batch_size=experiment.meta_batch_size)
    (one,) = episodes.take(1)
    at_hand = iter(tf.data.Dataset.from_tensors(one).repeat())
    # No stream lives longer than its measurement: it would draw ahead during the next one.
    draw = _median_seconds(functools.partial(next, iter(episodes)))
    alone = _median_seconds(functools.partial(step, at_hand))
    fed = _median_seconds(functools.partial(step, iter(episodes)))
    return Cost(draw, alone, fed)


def _median_seconds(call: Callable[[], Any]) -> float:
    seconds = []
    for _ in range(_WARM_UP + _COUNT):
        start = time.perf_counter()
        result = call()
        if isinstance(result, dict):
            float(result["loss"])  # waits for an accelerator
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds[_WARM_UP:])


def cost_apart(config: str) -> Cost:
    """Returns the cost of the experiment of a flag file, measured in its own process."""
    own = [argument for argument in sys.argv[1:] if not argument.startswith("--output")]
    command = [sys.executable, "-m", "benchmarks.episode_sampling", f"--flagfile={config}"]
    done = subprocess.run([*command, *own, "--alone"], capture_output=True, text=True, check=False)
    lines = [line for line in done.stdout.splitlines() if line.startswith("{")]
    if not lines:
        raise RuntimeError(
            f"Expected the numbers of {config}, got none ({done.stderr.strip()[-300:]}); "
            "check whether amaml-train accepts the same flags."
        )
    return Cost(**json.loads(lines[-1]))


def main(kind: type[Experiment] = Experiment) -> None:
    """Measures all experiments, or the one that the flags define."""
    if _ALONE.value:
        print(json.dumps(dataclasses.asdict(cost())))
        return
    folder = compare.output()
    folder.mkdir(parents=True, exist_ok=True)
    lines = [
        "# What sampling episodes costs",
        "",
        "Medians in milliseconds. *draw*: drawing a batch of episodes, with nothing else to do. "
        "*step*: a meta-step on a batch that is already there. *fed step*: a meta-step that waits "
        "for its batch, while the next batch is drawn.",
        "",
        "| experiment | draw | step | draw / step | fed step |",
        "|---|---|---|---|---|",
    ]
    for config in _CONFIGS.value:
        found = cost_apart(config)
        lines.append(
            f"| `{config}` | {1e3 * found.draw:.3g} | {1e3 * found.step:.3g} "
            f"| {found.draw / found.step:.1%} | {1e3 * found.fed_step:.3g} |"
        )
        print(lines[-1], flush=True)
    origin = provenance("python -m benchmarks.episode_sampling")
    lines += ["", *(f"- {name}: `{value}`" for name, value in origin.items()), ""]
    write_atomically(folder / "episode_sampling.md", "\n".join(lines))


if __name__ == "__main__":
    running.run(main)
