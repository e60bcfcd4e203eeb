"""What a configuration takes: the first call, a meta-step, and the peak memory.

Seconds are those of all processors together, so that other programs hardly change them.

    python -m benchmarks.worked_configurations --flagfile=configs/large/resnet12.cfg

It prints a line of JSON. Images are random numbers of the right size, so it needs no data. Other
flags may follow, as for `amaml-train`.
"""

from __future__ import annotations

import json
import time

import numpy as np

from amaml_tf.commands import flags, running
from amaml_tf.episodes import Episodes
from amaml_tf.experiment import Experiment
from amaml_tf.learner.meta_learner import MetaLearner
from amaml_tf.tasks import FewShotImages, LabelledImages, TaskFamily
from benchmarks.measuring import PeakMemory, resident

_STEPS = 2


def main(kind: type[Experiment] = Experiment) -> None:
    """Takes meta-steps as the flags say, and prints what they took."""
    experiment = flags.read(kind)
    family = _family(experiment)
    learner = experiment.make_learner(family)
    size = experiment.meta_batch_size
    batches = [*family.episodes("train", batch_size=size, num_batches=_STEPS + 1)]
    before, peak = resident(), PeakMemory()
    seconds = [_cpu_seconds(learner, batch) for batch in batches]
    adapted = learner.function.layout.size
    found = {
        "model": experiment.model,
        "adapted_parameters": adapted,
        "all_parameters": learner.model.count_params(),
        "tasks": size,
        "first_call_cpu_s": round(seconds[0], 1),
        "step_cpu_s": round(float(np.median(seconds[1:])), 2),
        "peak_mib": round(peak.stop()),
        "before_mib": round(before),
    }
    print(json.dumps(found))


def _cpu_seconds(learner: MetaLearner, batch: Episodes) -> float:
    start = time.process_time()
    learner.train_on_batch(*batch)
    return time.process_time() - start


def _family(experiment: Experiment) -> TaskFamily:
    if experiment.task != "image_folder":
        return experiment.make_family()
    sizes = experiment.given("task")
    side = sizes.pop("image_size")
    shape = (side, side, sizes.pop("channels"))
    each = sizes["num_support"] + max(sizes["num_query"], sizes.get("num_test_query", 0))
    ways = sizes["num_ways"]
    labels = np.repeat(np.arange(3 * ways), each)
    images = np.random.default_rng(0).integers(0, 256, (len(labels), *shape), np.uint8)
    data = LabelledImages(images, labels, [str(label) for label in range(3 * ways)])
    split = {"train": range(ways), "validation": range(ways, 2 * ways), "test": range(ways)}
    return FewShotImages(data, split, **sizes)


if __name__ == "__main__":
    running.run(main)
