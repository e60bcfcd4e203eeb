"""The benchmark of episode sampling, on a tiny experiment."""

import dataclasses

from benchmarks import episode_sampling


def test_measures_an_experiment(new_flags, monkeypatch):
    monkeypatch.setattr(episode_sampling, "_COUNT", 2)
    network = "--task=sinusoid --hidden_units=4 --algorithm=reptile --num_steps=1"
    new_flags(["episode_sampling", *network.split(), "--jit_compile=off", "--meta_batch_size=2"])
    seconds = dataclasses.astuple(episode_sampling.cost())
    assert all(0 < each < 5 for each in seconds)
