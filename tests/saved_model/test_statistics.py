"""The statistics that exports store for batch normalization, and what plain Keras makes of them."""

import shutil

import keras
import numpy as np
import pytest
import tensorflow as tf
from small_data import data_of

import amaml_tf as amaml
from amaml_tf.commands.run_statistics import (
    STATISTICS_FILE,
    keep_statistics,
    statistics_of_run,
)
from amaml_tf.experiment import Experiment
from amaml_tf.functional import keras_patches
from amaml_tf.saved_model import describe, load_initialization, read_contract, save_initialization
from amaml_tf.saved_model.interface import statistics_of
from amaml_tf.saved_model.stored_statistics import StoredStatistics, require_statistics

L = keras.layers
D = {"dtype": "float64"}


def network(*inner):
    return keras.Sequential([keras.Input((3,), **D), *inner, L.Dense(2, **D)])


def two_layers():
    keras.utils.set_random_seed(0)
    return network(L.BatchNormalization(**D), L.Dense(4, "tanh", **D), L.BatchNormalization(**D))


def learner_of(model, **options):
    learner = amaml.MetaLearner(model, amaml.algorithms.MAML(0.1, 1), **options)
    learner.compile(loss="mse", jit_compile="off")
    return learner


def episodes(count=3, tasks=4, seed=0):
    """Batches of tasks far from zero mean and unit variance."""
    rng = np.random.default_rng(seed)

    def examples(size):
        scale, shift = rng.uniform(2, 9, (2, tasks, 1, 1))
        x = scale * rng.normal(size=(tasks, size, 3)) + shift
        return x, x[..., :2] - x[..., 1:]

    return [(examples(5), examples(7)) for _ in range(count)]


def normalized(x):
    """Returns x as a new layer normalizes it in training, its mean and its variance."""
    mean, variance = x.mean(0), x.var(0)
    return (x - mean) / np.sqrt(variance + 1e-3), mean, variance


def test_statistics_are_averages_over_support_sets(tmp_path):
    """E2: zeros and ones were stored. Here they are what a few lines of NumPy compute."""
    model, batches = two_layers(), episodes()
    kernel, bias = (v.numpy() for v in model.layers[1].weights)
    found = []
    for (support_x, _), _ in batches:
        for x in support_x:
            first, *of_first = normalized(x)
            _, *of_second = normalized(np.tanh(first @ kernel + bias))
            found.append([*of_first, *of_second])
    save_initialization(learner_of(model), tmp_path, statistics_from=batches, check=False)
    stored = load_initialization(tmp_path).non_trainable_variables
    for variable, each in zip(stored, zip(*found, strict=True), strict=True):
        np.testing.assert_allclose(variable, np.mean(each, 0), rtol=1e-12)
    assert read_contract(tmp_path)["stored_statistics"] == {
        "of": "support sets of training tasks",
        "num_tasks": 12,
    }
    assert "variances of the support sets of 12 training tasks" in describe(tmp_path)


def inside(kind, layer):
    """A model with a batch normalization layer, inside of another one."""
    x = keras.Input((3,), **D)
    if kind == "functional":
        model = keras.Model(x, layer(x))
    elif kind == "sequential":
        model = keras.Sequential([keras.Input((3,), **D), layer])
    else:
        model = Subclassed(layer)
    return keras.Model(x, L.Dense(2, **D)(model(x)))


class Subclassed(keras.Model):
    """A model whose `call` knows nothing of training."""

    def __init__(self, layer):
        super().__init__(**D)
        self.layer = layer

    def call(self, x):
        return self.layer(x)


@pytest.mark.parametrize("kind", ["functional", "sequential", "subclassed"])
@pytest.mark.parametrize("synchronized", [False, True])
def test_layers_inside_other_models(kind, synchronized):
    """E1, E2: those of stored statistics, and those after adaptation."""
    batches = episodes()
    learner = learner_of(inside(kind, L.BatchNormalization(synchronized=synchronized, **D)))
    found = StoredStatistics.gathered(learner, batches)
    every = np.concatenate([support_x for (support_x, _), _ in batches])
    np.testing.assert_allclose(found.values[0], every.mean(axis=(0, 1)), rtol=1e-12)
    np.testing.assert_allclose(found.values[1], every.var(axis=1).mean(axis=0), rtol=1e-12)
    assert [v.name for v in statistics_of(learner.function)] == ["moving_mean", "moving_variance"]
    function, x = learner.function, every[0]
    after = function.statistics_of(function.parameters(), function.state(), (x, x[:, :2]))
    np.testing.assert_allclose(after[0], x.mean(axis=0), rtol=1e-12)


def test_noise_is_off_in_statistics():
    """They are those of predictions: nothing is dropped, and no power iteration is made."""
    noisy = network(L.Dropout(0.5, seed=1, **D), L.GaussianNoise(1.0, seed=1, **D), two_layers())
    spectral = L.SpectralNormalization(L.Dense(4, **D), **D)
    noisy_spectral = network(spectral, L.BatchNormalization(**D))
    (x, y), _ = episodes(1)[0]
    for model, plain in ((noisy, noisy.layers[-2]), (noisy_spectral, noisy_spectral)):
        function = learner_of(model).function
        found = function.statistics_of(function.parameters(), function.state(), (x[0], y[0]))
        for layer in plain.layers:
            layer.momentum = 0.0
        with keras_patches.batch_statistics(True):
            plain(x[0], training=False)
        stored = dict(zip([v.path for v in model.non_trainable_variables], found, strict=True))
        for variable in plain.non_trainable_variables:
            np.testing.assert_allclose(stored[variable.path], variable, rtol=1e-12)


def test_frozen_layers_have_no_statistics_of_a_support_set(tmp_path):
    model = inside("functional", L.BatchNormalization(trainable=False, **D))
    learner = learner_of(model)
    assert statistics_of(learner.function) == []
    save_initialization(learner, tmp_path, check=False)
    contract = read_contract(tmp_path)
    assert contract["batch_normalization"] == "stored"
    assert not any(n.startswith("stat") for n in contract["signatures"]["predict_with"]["inputs"])


def test_padding_and_tasks_that_are_not_finite_count_nowhere():
    batches = episodes()
    expected = StoredStatistics.gathered(learner_of(two_layers()), batches)
    padded = []
    for (x, y), query in batches:
        x, y = (np.concatenate([v, np.full_like(v[:1], np.nan)]) for v in (x, y))
        x, y = (np.concatenate([v, np.full_like(v[:, :2], 7.0)], axis=1) for v in (x, y))
        weight = np.tile([1.0] * 5 + [0.0] * 2, (len(x), 1))
        query = tuple(np.concatenate([v, v[:1]]) for v in query)
        padded.append(((x, y, weight), query))
    found = StoredStatistics.gathered(learner_of(two_layers()), padded)
    assert found.num_tasks == expected.num_tasks == 12
    for value, other in zip(found.values, expected.values, strict=True):
        np.testing.assert_allclose(value, other, rtol=1e-12)
    nothing = [((np.full_like(x, np.nan), y), query) for (x, y), query in batches[:1]]
    with pytest.raises(ValueError, match="got none among 4"):
        StoredStatistics.gathered(learner_of(two_layers()), nothing)


def test_an_endless_stream_ends():
    family = amaml.tasks.SinusoidFamily(num_support=5, num_query=5)
    model = keras.Sequential([keras.Input((1,)), L.BatchNormalization(), L.Dense(1)])
    stream = family.episodes("train", batch_size=50)
    assert StoredStatistics.gathered(learner_of(model), stream).num_tasks == 150


def test_keras_and_the_server_predict_the_same(tmp_path):
    model = two_layers()
    path = save_initialization(learner_of(model), tmp_path, statistics_from=episodes(), check=False)
    x = episodes(1, seed=5)[0][1][0][0]
    keras_model = load_initialization(tmp_path)
    served = tf.saved_model.load(path).signatures["serving_default"]
    expected = keras_model(x)
    np.testing.assert_allclose(served(x=x)["predictions"], expected, rtol=1e-12)
    # One row is predicted as well as many, so that a server may join requests.
    np.testing.assert_allclose(served(x=x[:1])["predictions"], expected[:1], rtol=1e-12)
    assert read_contract(tmp_path)["signatures"]["serving_default"]["may_be_batched"]


def test_keras_trains_further_from_what_was_learned(tmp_path):
    """E2: after the same epochs, with zeros and ones, it was hardly better than random weights."""
    rng = np.random.default_rng(0)
    weights = rng.normal(size=(3, 2))

    def examples(*size):
        x = rng.normal(50, 10, (*size, 3))
        return x, (x - 50) / 10 @ weights

    learned = network(L.BatchNormalization(**D))
    learned.layers[-1].kernel.assign(weights)
    support, test = examples(32, 40), examples(200)
    save_initialization(
        learner_of(learned), tmp_path, statistics_from=[(support, support)], check=False
    )
    models = load_initialization(tmp_path), network(L.BatchNormalization(**D)), learned
    learned.layers[0].set_weights([*learned.layers[0].get_weights()[:2], np.zeros(3), np.ones(3)])
    x, y = examples(40)
    losses = []
    for model in models:
        model.compile(keras.optimizers.SGD(0.01), loss="mse")
        model.fit(x, y, epochs=3, verbose=0)
        losses.append(model.evaluate(*test, verbose=0))
    initialization, random, zeros_and_ones = losses
    assert initialization < 0.05 * random
    assert initialization < 0.05 * zeros_and_ones


def test_a_new_network_is_refused_unless_its_statistics_are_used(tmp_path):
    with pytest.raises(ValueError, match=r"pass statistics_from=family\.episodes"):
        save_initialization(learner_of(two_layers()), tmp_path)
    assert not list(tmp_path.iterdir())
    # What the learner itself reads is left as it is, frozen layers too, ...
    model = network(L.BatchNormalization(trainable=False, **D))
    for learner in (learner_of(two_layers(), batch_statistics=False), learner_of(model)):
        require_statistics(learner)
        StoredStatistics.gathered(learner, episodes()).store(learner)
        assert not learner.model.layers[0].moving_mean.numpy().any()
    # ... and so is a network that was trained elsewhere.
    model = network(L.BatchNormalization(**D))
    model.layers[0].moving_mean.assign([1.0, 2.0, 3.0])
    require_statistics(learner_of(model))


def test_statistics_of_another_network_are_refused(tmp_path):
    other = StoredStatistics.gathered(learner_of(network(L.BatchNormalization(**D))), episodes())
    with pytest.raises(ValueError, match="gather them with this network"):
        save_initialization(learner_of(two_layers()), tmp_path, statistics_from=other)


def test_a_run_keeps_them_for_exports_without_its_data(tmp_path):
    """E14: and what is missing, or of another meta-step, is gathered anew or asked for."""
    settings = data_of("image_folder", tmp_path / "images")
    experiment = Experiment(
        task="image_folder", num_support=1, num_query=1, filters=2, num_blocks=1, **settings
    )
    family = experiment.make_family()
    learner = experiment.make_learner(family)
    keep_statistics(experiment, family, learner, tmp_path)
    kept = statistics_of_run(experiment, learner, tmp_path, 0)
    expected = StoredStatistics.gathered(learner, family.episodes("train", batch_size=8))
    assert kept is not None
    assert kept.num_tasks == expected.num_tasks == 128
    for value, other in zip(kept.values, expected.values, strict=True):
        np.testing.assert_allclose(value, other, rtol=1e-12)
    assert statistics_of_run(experiment, learner, tmp_path, 1) is not None
    shutil.rmtree(tmp_path / "images")
    again = statistics_of_run(experiment, learner, tmp_path, 0)
    assert again is not None
    np.testing.assert_array_equal(again.values[0], kept.values[0])
    with pytest.raises(ValueError, match=r"got neither .*end the run with amaml-train"):
        statistics_of_run(experiment, learner, tmp_path, 1)
    (tmp_path / STATISTICS_FILE).write_text("{")
    with pytest.raises(ValueError, match="got neither"):
        statistics_of_run(experiment, learner, tmp_path, 0)
