"""What `--deterministic` costs: the time of a meta-step with it, over that without it.

    python -m benchmarks.determinism --config=sinusoid --output=benchmark_results

Each run is an `amaml-train` of its own, because TensorFlow takes the setting before it computes
anything. Runs with and without take turns. The first row of a run's log, which holds the
compilation, does not count. Writes determinism.json.
"""

from __future__ import annotations

import csv
import pathlib
import statistics
import subprocess
import sys
import tempfile

from absl import app, flags

from benchmarks.measuring import write

_OUTPUT = flags.DEFINE_string("output", "benchmark_results", "Folder for determinism.json.")
_CONFIG = flags.DEFINE_multi_string("config", ["sinusoid"], "Name of a file in configs/.")
_DATA_DIR = flags.DEFINE_string("data_dir", "", "As that of `amaml-train`.")
_META_STEPS = flags.DEFINE_integer("meta_steps", 20, "Meta-steps of each row of the log.")
_ROUNDS = flags.DEFINE_integer("rounds", 2, "Runs of each kind.")

_CONFIGS = pathlib.Path(__file__).parents[1] / "configs"
_ROWS = 5


def seconds_of_a_meta_step(config: str, is_deterministic: bool) -> float:
    """Returns the median over the rows of the log but the first."""
    with tempfile.TemporaryDirectory() as workdir:
        arguments = [
            f"--flagfile={_CONFIGS / config}.cfg",
            f"--workdir={workdir}",
            *([f"--data_dir={_DATA_DIR.value}"] if _DATA_DIR.value else []),
            f"--deterministic={str(is_deterministic).lower()}",
            f"--num_meta_steps={_ROWS * _META_STEPS.value}",
            f"--log_every={_META_STEPS.value}",
            "--num_eval_episodes=2",
            "--eval_batch_size=2",
        ]
        program = [sys.executable, "-m", "amaml_tf.train", *arguments]
        subprocess.run(program, check=True, capture_output=True)
        with (pathlib.Path(workdir) / "log.csv").open(newline="") as file:
            seconds = [float(row["seconds"]) for row in csv.DictReader(file)]
    return statistics.median(seconds[1:]) / _META_STEPS.value


def main(_: list[str]) -> None:
    """Measures, prints and writes."""
    rows = []
    for config in _CONFIG.value:
        seconds: dict[bool, list[float]] = {False: [], True: []}
        for _round in range(_ROUNDS.value):
            for way, those in seconds.items():
                those.append(seconds_of_a_meta_step(config, way))
        without, with_it = (min(those) for those in seconds.values())
        rows.append({"config": config, "seconds_with": with_it, "seconds_without": without})
        print(
            f"{config}: {1e3 * with_it:.1f} ms a meta-step, {1e3 * without:.1f} ms without "
            f"--deterministic: {with_it / without:.2f} times as long",
            flush=True,
        )
    write("determinism", rows, _OUTPUT.value)


if __name__ == "__main__":
    app.run(main)
