"""Exports in raw units: what callers have, and what they want back."""

from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
from sessions import Session
from small_data import data_of

import amaml_tf as amaml
from amaml_tf.experiment.task_file import stored_task, write_task
from amaml_tf.saved_model import load_initialization, read_contract, save_initialization
from amaml_tf.tasks.images.omniglot import OmniglotFamily
from amaml_tf.units import Affine, Pixels, Units

SIZES = {"num_support": 4, "num_query": 3}


def family_of(name, folder, **sizes):
    return amaml.tasks.REGISTRY.find(name)(**{**data_of(name, folder), **sizes})


def learner_of(family, model=None):
    if model is None:
        model = amaml.models.multilayer_perceptron(
            family.input_shape, family.num_outputs, (4,), seed=0
        )
    learner = amaml.MetaLearner(model, amaml.algorithms.MAML(0.05, 3))
    learner.compile(loss=family.loss, jit_compile="off")
    return learner


def task_of(family):
    return tf.nest.map_structure(lambda v: v[0], next(iter(family.episodes("test", batch_size=1))))


@pytest.mark.parametrize("name", ["alpine", pytest.param("cosmixture", marks=pytest.mark.long)])
def test_functions_in_their_own_units(tmp_path, name):
    """E12: requests in raw units were silently wrong."""
    family = family_of(name, tmp_path, **SIZES)
    learner = learner_of(family)
    units: Any = family.units
    path = save_initialization(learner, tmp_path / "export", units=units, check=False)
    (x, y), (query_x, _) = task_of(family)
    raw_x, raw_query = units.inputs.raw(x), units.inputs.raw(query_x)
    answer = Session(path)(
        "adapt_and_predict", support_x=raw_x, support_y=units.targets.raw(y), query_x=raw_query
    )
    adapted = learner.adapt((x, y))
    np.testing.assert_allclose(
        answer["predictions"], units.targets.raw(adapted(query_x)), rtol=1e-4, atol=1e-4
    )
    # The same in Python, and the Keras file.
    in_python = learner.adapt(units.scaled(raw_x.numpy(), units.targets.raw(y).numpy()))
    scaled, _ = units.scaled(raw_query.numpy())
    np.testing.assert_allclose(in_python(scaled), adapted(query_x), atol=1e-5)
    model = load_initialization(path)
    np.testing.assert_allclose(
        model(raw_query), units.targets.raw(learner.model(query_x)), rtol=1e-4, atol=1e-4
    )
    assert "in their own units" in read_contract(path)["units_in_words"]["targets"]


def test_scaling_is_that_of_the_family(tmp_path):
    family = family_of("alpine", tmp_path, **SIZES)
    x = np.array([[1.0, -2.0], [3.0, 4.0]])
    parameters = family.parameters("test", 0)
    inputs, targets = family._examples(tf.constant(x), parameters)
    raw = family.function(tf.constant(x), parameters)
    units: Any = family.units
    scaled_x, scaled_y = units.scaled(x, raw.numpy())
    np.testing.assert_allclose(scaled_x, inputs, atol=1e-6)
    np.testing.assert_allclose(scaled_y, targets, atol=1e-6)


@pytest.mark.parametrize("inverted", [pytest.param(False, marks=pytest.mark.long), True])
def test_images_of_any_polarity(tmp_path, inverted):
    """E12: images of 0 to 255 were silently wrong."""
    layers = [amaml.models.multilayer_perceptron((4,), 3, (4,), seed=0)]
    model = keras.Sequential([keras.Input((2, 2, 1)), keras.layers.Flatten(), *layers])
    learner = amaml.MetaLearner(model, amaml.algorithms.MAML(0.05, 3))
    learner.compile(loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    path = save_initialization(learner, tmp_path, units=Units(Pixels(inverted)), check=False)
    pixels = np.random.default_rng(0).integers(0, 256, (6, 2, 2, 1)).astype("uint8")
    seen = ((255 - pixels if inverted else pixels) / 255).astype("float32")
    labels = np.arange(6, dtype="int32") % 3
    session = Session(path)
    answer = session("adapt_and_predict", support_x=pixels, support_y=labels, query_x=pixels)
    expected = learner.adapt((seen, labels))(seen)
    np.testing.assert_allclose(answer["predictions"], expected, atol=1e-5)
    np.testing.assert_allclose(load_initialization(path)(pixels), model(seen), atol=1e-5)
    with pytest.raises(tf.errors.InvalidArgumentError):  # numbers from 0 to 1 are told from pixels
        session("adapt_and_predict", support_x=seen, support_y=labels, query_x=seen)


def test_families_of_images_say_their_polarity(tmp_path):
    folders = family_of("image_folder", tmp_path / "folders", num_support=1, num_query=1)
    assert folders.units == Units(Pixels(inverted=False))
    assert OmniglotFamily.inverted


@pytest.mark.parametrize(
    "name", ["ratings_csv", pytest.param("movielens_100k", marks=pytest.mark.long)]
)
def test_ratings_by_the_items_that_users_rate(tmp_path, name):
    """E12: ratings could not be served at all. Items are words or numbers."""
    given = {**data_of(name, tmp_path), "num_factors": 2}
    family = amaml.tasks.REGISTRY.find(name)(**given, **SIZES)
    write_task(family, tmp_path)
    stored: Any = stored_task(tmp_path)
    units = stored.units
    assert units == family.units
    learner = learner_of(family)
    session = Session(save_initialization(learner, tmp_path / "export", units=units, check=False))
    words = name == "ratings_csv"
    items = [*units.inputs.identifiers[:5], "what" if words else 10**6]
    known = np.array([each.encode() for each in items], object) if words else np.array(items)
    ratings = np.array([[1], [5], [3], [4], [2], [3]], "float32")
    answer = session("adapt_and_predict", support_x=known, support_y=ratings, query_x=known)
    x = np.array([*units.inputs.features[:5], np.zeros(4)], "float32")  # unknown items: average
    adapted = learner.adapt((x, units.targets.scaled(ratings)))
    np.testing.assert_allclose(answer["predictions"], units.targets.raw(adapted(x)), atol=1e-4)
    model = load_initialization(tmp_path / "export")
    np.testing.assert_allclose(
        model(tf.constant(known)), units.targets.raw(learner.model(x)), atol=1e-4
    )


def test_what_has_no_scaling_has_no_units(tmp_path):
    assert family_of("sinusoid", tmp_path).units is None


def test_units_need_one_input(tmp_path):
    inputs = [keras.Input((1,)), keras.Input((1,))]
    model = keras.Model(inputs, keras.layers.Dense(1)(keras.layers.Concatenate()(inputs)))
    learner = amaml.MetaLearner(model, amaml.algorithms.MAML(0.05, 3))
    learner.compile(loss="mse")
    with pytest.raises(ValueError, match="one input and one output"):
        save_initialization(learner, tmp_path, units=Units(Affine(0.0, 2.0)))
