"""Every worked configuration trains: its flag file, with smaller sizes after it."""

import csv

import project
import pytest
import small_data

from amaml_tf.commands import flag_files
from amaml_tf.commands import flags as experiment_flags
from amaml_tf.experiment import Experiment
from amaml_tf.training import train

CONFIGS = project.ROOT / "configs" / "large"
IMAGES = ("--num_ways=3", "--num_query=1", "--num_test_query=1")
TOKENS = ("--width=16", "--num_heads=2", "--num_blocks=1", "--vocabulary_size=50")
SMALLER = {
    "resnet12": (*IMAGES, "--image_size=8", "--filters=2", "--num_blocks=2"),
    "mobilenet": (*IMAGES, "--image_size=32", "--num_frozen_layers=153"),
    "transformer": (*TOKENS, "--sequence_length=16", "--num_stages=4"),
    "lora": (*TOKENS, "--sequence_length=16", "--num_stages=4", "--lora_rank=2"),
}


@pytest.mark.long
@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.cfg")), ids=lambda path: path.stem)
def test_it_takes_twenty_meta_steps(path, new_flags, tmp_path, monkeypatch):
    monkeypatch.chdir(project.ROOT)
    arguments = [f"--flagfile={path}", *SMALLER[path.stem], "--meta_batch_size=2"]
    flag_files.parse(["amaml", *arguments])
    if new_flags.task == "image_folder":
        new_flags["data_dir"].parse(small_data.image_folder(tmp_path / "data")["data_dir"])
    experiment = experiment_flags.read(Experiment)
    family = experiment.make_family()
    learner = experiment.make_learner(family)
    before = learner.model.get_weights()
    train(learner, family, tmp_path, num_meta_steps=20, meta_batch_size=2, log_every=10)
    learned = {id(variable) for variable in learner.model.trainable_variables}
    pairs = zip(learner.model.weights, before, strict=True)
    moved = {id(variable) for variable, value in pairs if (variable.numpy() != value).any()}
    assert moved
    assert moved <= learned  # what is frozen stays
    with (tmp_path / "log.csv").open() as log:
        rows = list(csv.DictReader(log))
    assert float(rows[-1]["loss"]) < 3
    assert [row["step"] for row in rows] == ["10", "20"]
    if path.stem == "lora":
        names = {variable.name for variable in learner.model.trainable_variables}
        assert names == {"lora_kernel_a", "lora_kernel_b"}
