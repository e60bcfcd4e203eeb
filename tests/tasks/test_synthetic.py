"""The synthetic families against their definitions, written out in NumPy."""

from typing import Any

import keras
import numpy as np
import pytest

from amaml_tf import losses, tasks


def sinusoid(x, p):
    return p[0] * np.sin(x - p[1])


def cosmixture(x, p):
    amplitude, frequency, phase = p
    terms = -0.1 * amplitude * np.cos(frequency * x + phase) - x**2
    return terms.sum(axis=-1, keepdims=True)


def cosmixture_program(x, p):
    amplitude, frequency, phase = p
    terms = -amplitude * np.cos(frequency * x + phase) - x**2
    return terms.sum(axis=-1, keepdims=True)


def alpine(x, p):
    return np.abs(x * np.sin(x + p) + 0.1 * x).sum(axis=-1, keepdims=True)


def alpine_program(x, p):
    return np.abs(x * np.sin(x + p[0] + np.pi) + 0.1 * x).sum(axis=-1, keepdims=True)


PI = np.pi
CASES: dict[str, tuple[Any, ...]] = {
    "sinusoid": (tasks.SinusoidFamily, {}, sinusoid, [(0.1, 5), (0, PI)], 5),
    "cosmixture": (
        tasks.CosMixtureFamily,
        {"dimension": 3},
        cosmixture,
        [(0.1, 1), (0.5 * PI, 2 * PI), (3, 6)],
        1,
    ),
    "cosmixture_program": (
        tasks.CosMixtureFamily,
        {"variant": "program"},
        cosmixture_program,
        [(0.1, 1), (3 * PI, 6 * PI), (0.5, 2)],
        1,
    ),
    "alpine": (tasks.AlpineFamily, {}, alpine, [(-5 * PI / 12, 5 * PI / 12)] * 2, 10),
    "alpine_program": (
        tasks.AlpineFamily,
        {"variant": "program"},
        alpine_program,
        [(-5 * PI / 12, 5 * PI / 12)],
        10,
    ),
}


@pytest.fixture(params=CASES)
def case(request):
    cls, arguments, definition, ranges, bound = CASES[request.param]
    return cls(dtype="float64", **arguments), definition, np.array(ranges), bound


def test_examples_follow_the_definition(case):
    family, definition, _, bound = case
    for split in family.splits:
        parameters = family.parameters(split, 5).numpy()
        for x, y in family.task_episode(split, 5):
            own_x = x.numpy() * family.input_scale + family.input_mean
            own_y = y.numpy() * family.target_scale + family.target_mean
            assert np.abs(own_x).max() <= bound
            np.testing.assert_allclose(own_y, definition(own_x, parameters), rtol=0, atol=1e-12)


def test_parameters_fill_their_ranges(case):
    family, _, ranges, _ = case
    parameters = np.array([family.parameters("train", i) for i in range(100)])
    low, high = ranges.T
    assert np.all((parameters >= low) & (parameters <= high))
    # Of 100 uniform numbers the extremes lie within a tenth of the range but for 1 in 10,000 times.
    assert np.all(parameters.min(axis=0) < low + 0.1 * (high - low))
    assert np.all(parameters.max(axis=0) > high - 0.1 * (high - low))


def test_tasks_of_the_splits_are_disjoint(case):
    family, *_ = case
    drawn = {
        tuple(family.parameters(split, i).numpy()) for split in family.splits for i in range(50)
    }
    assert len(drawn) == 150


def test_points_are_drawn_anew_at_each_visit(case):
    family, *_ = case
    first, _ = family.task_episode("train", 0, seed=0)
    second, _ = family.task_episode("train", 0, seed=1)
    assert not np.intersect1d(first[0], second[0]).size


def test_support_and_query_share_no_point(case):
    family, *_ = case
    (support_x, _), (query_x, _) = family.task_episode("train", 0)
    assert not np.intersect1d(support_x, query_x).size


def test_the_stream_visits_these_tasks():
    family = tasks.CosMixtureFamily(num_tasks=3, dtype="float64")
    parameters = [family.parameters("train", i).numpy() for i in range(3)]
    (x, y), _ = next(iter(family.episodes("train", batch_size=3)))
    own_y = y.numpy() * family.target_scale + family.target_mean
    for task_x, task_y in zip(x.numpy(), own_y, strict=True):
        distances = [np.abs(cosmixture(task_x, p) - task_y).max() for p in parameters]
        assert min(distances) < 1e-12


@pytest.mark.parametrize("cls", [tasks.CosMixtureFamily, tasks.AlpineFamily])
def test_training_targets_are_standardised_by_training_tasks_alone(cls):
    family = cls(num_support=500, num_query=1)
    y = np.stack([family.task_episode("train", i)[0][1] for i in range(100)])
    # Means of 50,000 points deviate by about 1/sqrt(50,000) = 0.0045.
    assert abs(y.mean()) < 0.03
    assert abs(y.std() - 1) < 0.03
    other = cls(num_test_support=7)
    assert (other.target_mean, other.target_scale) == (family.target_mean, family.target_scale)
    another = cls(task_seed=1)
    assert another.target_mean != family.target_mean


def test_alpine_inputs_are_standardised():
    family = tasks.AlpineFamily(num_support=2000, num_query=1)
    x = np.stack([family.task_episode("train", i)[0][0] for i in range(20)])
    np.testing.assert_allclose(x.mean(axis=(0, 1)), 0, atol=0.03)
    np.testing.assert_allclose(x.std(axis=(0, 1)), 1, atol=0.03)


def test_float32_and_float64_show_the_same_tasks():
    single, double = (tasks.AlpineFamily(dtype=dtype) for dtype in ("float32", "float64"))
    for few, many in zip(
        single.task_episode("train", 3), double.task_episode("train", 3), strict=True
    ):
        np.testing.assert_allclose(few[0], many[0], rtol=1e-6, atol=1e-6)
        np.testing.assert_allclose(few[1], many[1], rtol=1e-6, atol=1e-6)


def test_grid_is_the_true_curve_in_the_units_of_the_episodes():
    family = tasks.CosMixtureFamily(dtype="float64")
    x, y = family.grid("test", 4, num_points=5)
    np.testing.assert_allclose(x[:, 0], [-1, -0.5, 0, 0.5, 1])
    expected = cosmixture(x.numpy(), family.parameters("test", 4).numpy())
    np.testing.assert_allclose(y * family.target_scale + family.target_mean, expected)


def test_grid_needs_one_coordinate():
    with pytest.raises(
        ValueError, match=r"Expected functions of one coordinate.*got 2.*dimension=1"
    ):
        tasks.AlpineFamily().grid("train", 0)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"variant": "slides"}, r"Expected variant to be one of \('paper', 'program'\), got 'slid"),
        ({"dimension": 0}, "Expected dimension to be 1 or more, got 0"),
        ({"num_tasks": 0}, "Expected num_tasks to be 1 or more, got 0"),
        ({"num_support": 0}, "Expected num_support to be 1 or more, got 0"),
        ({"num_test_query": 0}, "Expected num_test_query to be 1 or more, got 0"),
    ],
)
def test_wrong_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        tasks.AlpineFamily(**arguments)


def test_losses_of_the_families():
    y_true, y_pred = np.array([[1.0], [2.0]]), np.array([[0.0], [4.0]])
    for family, expected in (
        (tasks.SinusoidFamily(), 2.5),
        (tasks.CosMixtureFamily(), 1.25),
        (tasks.AlpineFamily(), 1.25),
    ):
        loss: Any = family.loss
        assert loss(y_true, y_pred) == expected


def test_half_mean_squared_error_survives_serialization():
    loss = keras.losses.deserialize(keras.losses.serialize(losses.HalfMeanSquaredError(name="l")))
    assert isinstance(loss, losses.HalfMeanSquaredError)
    assert loss.name == "l"


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_half_mean_squared_error_keeps_its_dtype(dtype):
    y = np.ones((3, 2), dtype)
    assert losses.HalfMeanSquaredError(dtype=dtype)(y, 0 * y).dtype == dtype
