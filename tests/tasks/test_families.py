"""What holds for every family of tasks, whatever it is about."""

import re
import subprocess
import sys
from collections.abc import Callable

import numpy as np
import project
import pytest
import small_data
import tensorflow as tf

from amaml_tf import tasks


def image_family() -> tasks.TaskFamily:
    labels = np.repeat(np.arange(20), 6)
    images = np.random.default_rng(0).integers(0, 256, (120, 8, 8, 1), np.uint8)
    data = tasks.LabelledImages(images, labels, [str(label) for label in range(20)])
    split = {"train": range(10), "validation": range(10, 15), "test": range(15, 20)}
    return tasks.FewShotImages(
        data, split, num_ways=3, num_support=2, num_query=1, num_test_query=4, rotations=True
    )


def ratings_family() -> tasks.RatingsFamily:
    rng = np.random.default_rng(0)
    users, items = (axis.ravel() for axis in np.meshgrid(range(50), range(12), indexing="ij"))
    ratings = tasks.Ratings(users, items, rng.uniform(1, 5, 600), rng.permutation(600))
    return tasks.RatingsFamily(ratings, num_support=3, num_query=4, num_factors=2)


def function_family() -> tasks.TaskFamily:
    def episode(split, rng):
        x = rng.normal(size=(7, 2))
        y = x.sum(axis=1, keepdims=True) * (2 if split == "test" else 1)
        return (x[:3], y[:3]), (x[3:], y[3:])

    return tasks.from_function(episode)


def generator_family() -> tasks.TaskFamily:
    def episodes(split, rng):
        while True:
            x = rng.normal(size=(7, 2)) + (split == "test")
            yield (x[:3], x[:3]), (x[3:], x[3:])

    return tasks.from_function(episodes)


def dataset_family() -> tasks.TaskFamily:
    x = np.random.default_rng(0).normal(size=(9, 5, 2))
    train = tf.data.Dataset.from_tensor_slices(((x, x), (x, x)))
    other = tf.data.Dataset.from_tensor_slices(((-x, x), (x, x)))
    return tasks.from_dataset(train, validation=other, test=other)


#: Families that need data in memory, or code; the others are in the registry.
IN_MEMORY: dict[str, Callable[[], tasks.TaskFamily]] = {
    "images": image_family,
    "ratings": ratings_family,
    "function": function_family,
    "generator": generator_family,
    "dataset": dataset_family,
}


@pytest.fixture(scope="module", params=[*tasks.REGISTRY, *IN_MEMORY])
def family(request, tmp_path_factory):
    name = request.param
    if name in IN_MEMORY:
        return IN_MEMORY[name]()
    data = small_data.data_of(name, tmp_path_factory.mktemp(name))
    return tasks.REGISTRY[name](**small_data.SIZES, **data)


def batches(family, split="train", **arguments):
    stream = family.episodes(split, batch_size=4, **arguments)
    return [tf.nest.flatten(batch) for batch in stream.as_numpy_iterator()]


def test_batches_have_the_announced_shapes(family):
    for split in family.splits:
        dataset = family.episodes(split, batch_size=4, num_batches=1)
        specs = tf.nest.flatten(dataset.element_spec)
        arrays = tf.nest.flatten(next(iter(dataset)))
        assert [array.shape for array in arrays] == [spec.shape for spec in specs]
        support_x, support_y, query_x, query_y = arrays
        classes = family.num_outputs if family.kind == "classification" else 1
        num_support, num_query = (size * classes for size in family.sizes(split))
        assert support_x.shape == (4, num_support, *family.input_shape)
        assert query_x.shape == (4, num_query, *family.input_shape)
        targets = () if family.kind == "classification" else (family.num_outputs,)
        assert support_y.shape == (4, num_support, *targets)
        assert query_y.shape == (4, num_query, *targets)
        inputs = tf.int32 if hasattr(family, "vocabulary_size") else tf.float32
        assert support_x.dtype == query_x.dtype == inputs
        expected = tf.int32 if family.kind == "classification" else tf.float32
        assert support_y.dtype == query_y.dtype == expected


def test_a_stream_repeats_itself(family):
    first, second = batches(family, num_batches=3), batches(family, num_batches=3)
    tf.nest.map_structure(np.testing.assert_array_equal, first, second)


def test_a_resumed_stream_continues(family):
    whole = batches(family, num_batches=6)
    rest = batches(family, start=2, num_batches=4)
    tf.nest.map_structure(np.testing.assert_array_equal, whole[2:], rest)


def test_the_batches_of_a_stream_differ(family):
    first, second = batches(family, num_batches=2)
    assert not np.array_equal(first[0], second[0])


def test_splits_differ(family):
    assert not np.array_equal(
        batches(family, num_batches=1)[0][0], batches(family, "test", num_batches=1)[0][0]
    )


def test_seeds_differ_unless_the_user_orders_the_tasks(family):
    same = np.array_equal(
        batches(family, num_batches=1)[0][0], batches(family, num_batches=1, seed=1)[0][0]
    )
    assert same == isinstance(family, type(dataset_family()))


def test_no_global_random_state_is_read(family):
    tf.random.set_seed(1)
    first = batches(family, num_batches=1)
    tf.random.set_seed(2)
    tf.nest.map_structure(np.testing.assert_array_equal, first, batches(family, num_batches=1))


def test_an_endless_stream_says_so(family):
    cardinality = family.episodes("train", batch_size=2).cardinality()
    assert cardinality in (tf.data.INFINITE_CARDINALITY, tf.data.UNKNOWN_CARDINALITY)


@pytest.mark.parametrize(
    ("split", "arguments", "message"),
    [
        ("dev", {}, r"Expected split to be one of \('train', .*got 'dev'; use"),
        ("train", {"batch_size": 0}, "Expected batch_size to be 1 or more, got 0"),
        ("train", {"start": -1}, "Expected start to be the number of a batch.*got -1"),
        ("train", {"num_batches": 0}, "Expected num_batches to be 1 or more, got 0"),
    ],
)
def test_wrong_arguments(family, split, arguments, message):
    with pytest.raises(ValueError, match=message):
        family.episodes(split, **{"batch_size": 2, **arguments})


def test_loss_and_metrics_take_a_batch_of_predictions(family):
    (_, support_y), _ = next(iter(family.episodes("train", batch_size=1)))
    predictions = np.zeros((support_y.shape[1], family.num_outputs), np.float32)
    assert family.loss(support_y[0], predictions) > 0
    (metric,) = family.metrics()
    metric.update_state(support_y[0], predictions)
    assert metric.name == {"regression": "rmse", "classification": "accuracy"}[family.kind]
    assert 0 <= metric.result() < 100
    assert family.metrics()[0] is not metric


def test_enumerated_tasks_are_all_visited_before_any_is_visited_again():
    family = tasks.AlpineFamily(num_support=1, num_query=1, num_tasks=7)
    indices = family._indices("train", seed=3, first=0).take(21).as_numpy_iterator()
    rounds = np.array(list(indices)).reshape(3, 7)
    assert [sorted(each) for each in rounds] == [list(range(7))] * 3
    assert len({tuple(each) for each in rounds}) == 3


def test_task_episodes_belong_to_their_task():
    family = ratings_family()
    episodes = [tf.nest.flatten(family.task_episode("test", i)) for i in range(3)]
    assert not np.array_equal(episodes[0][1], episodes[1][1])
    tf.nest.map_structure(
        np.testing.assert_array_equal,
        episodes[2],
        tf.nest.flatten(family.task_episode("test", 2, seed=5)),
    )
    with pytest.raises(ValueError, match=r"Expected a task index from 0 to 9.*got 10; choose"):
        family.task_episode("test", 10)


def test_registry_names_families():
    assert set(tasks.REGISTRY) == {
        "sinusoid",
        "cosmixture",
        "alpine",
        "omniglot",
        "cifar_fs",
        "tfds",
        "image_folder",
        "topics",
        "movielens_100k",
        "movielens_1m",
        "ratings_csv",
    }
    assert isinstance(tasks.REGISTRY["cosmixture"](num_support=3), tasks.TaskFamily)


def test_importing_tasks_does_not_import_tensorflow_datasets():
    code = "import sys, amaml_tf.tasks; print('tensorflow_datasets' in sys.modules)"
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert result.stdout.strip() == "False"


DOCUMENT = project.ROOT / "docs" / "tasks.md"


@pytest.mark.parametrize(
    "code", re.findall(r"```python\n(.*?)```", DOCUMENT.read_text(), re.DOTALL)
)
def test_examples_of_the_documentation_run(code):
    exec(code, {})
