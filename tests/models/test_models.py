"""The papers' networks: shapes, sizes, seeds."""

import keras
import numpy as np
import pytest

from amaml_tf import models


def test_multilayer_perceptron_of_the_paper():
    model = models.multilayer_perceptron((2,), 1)
    assert model.count_params() == (2 * 32 + 32) + (32 * 32 + 32) + (32 + 1)
    assert [layer.activation.__name__ for layer in model.layers[1:]] == ["tanh", "tanh", "linear"]
    assert model(np.ones((5, 2))).shape == (5, 1)


def test_multilayer_perceptron_flattens_images():
    assert models.multilayer_perceptron((4, 4, 1), 3)(np.ones((2, 4, 4, 1))).shape == (2, 3)


def test_multilayer_perceptron_without_hidden_layers_is_linear():
    assert models.multilayer_perceptron((3,), 2, hidden_units=()).count_params() == 8


def test_convolutional_network_of_maml_for_omniglot():
    model = models.convolutional_network((28, 28, 1), 5)
    convolutions = 9 * 1 * 64 + 3 * 9 * 64 * 64
    assert model.count_params() == convolutions + 4 * 4 * 64 + 64 * 5 + 5
    assert model(np.zeros((2, 28, 28, 1))).shape == (2, 5)
    sizes = [each.output.shape[1] for each in model.layers if "conv" in each.name]
    assert sizes == [14, 7, 4, 2]


def test_convolutional_network_of_maml_for_miniimagenet():
    model = models.convolutional_network((84, 84, 3), 5, filters=32, downsampling="max_pool")
    dense = model.layers[-1]
    assert dense.kernel.shape == (5 * 5 * 32, 5)


def test_convolutional_network_without_normalization_has_biases():
    model = models.convolutional_network((8, 8, 1), 2, 4, num_blocks=2, batch_normalization=False)
    assert not model.non_trainable_variables
    assert model.count_params() == (9 * 4 + 4) + (9 * 4 * 4 + 4) + (4 * 2 + 2)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize(
    "build",
    [
        lambda **arguments: models.multilayer_perceptron((8, 8, 1), 2, (3,), **arguments),
        lambda **arguments: models.convolutional_network((8, 8, 1), 2, 3, 2, **arguments),
        lambda **arguments: models.convolutional_network(
            (8, 8, 1), 2, 3, 2, downsampling="max_pool", **arguments
        ),
    ],
)
def test_dtype_of_weights_and_predictions(build, dtype):
    model = build(dtype=dtype)
    assert {weight.dtype for weight in model.trainable_variables} == {dtype}
    assert model(np.ones((1, 8, 8, 1), dtype)).dtype == dtype


def test_seeds_fix_the_initial_weights():
    first, same, other, free = (
        models.multilayer_perceptron((2,), 1, seed=seed) for seed in (1, 1, 2, None)
    )
    for a, b, c, d in zip(
        first.get_weights(),
        same.get_weights(),
        other.get_weights(),
        free.get_weights(),
        strict=True,
    ):
        np.testing.assert_array_equal(a, b)
        if a.ndim == 2:
            assert not np.array_equal(a, c)
            assert not np.array_equal(a, d)


def test_layers_of_equal_shape_start_differently():
    model = models.multilayer_perceptron((4,), 1, hidden_units=(4, 4), seed=0)
    first, _, second, *_ = model.get_weights()
    assert not np.array_equal(first, second)


def test_models_survive_saving(tmp_path):
    model = models.convolutional_network((8, 8, 1), 2, filters=3, num_blocks=2, seed=0)
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    x = np.random.default_rng(0).normal(size=(2, 8, 8, 1)).astype("float32")
    np.testing.assert_allclose(loaded(x), model(x), rtol=1e-6)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"downsampling": "average"}, r"Expected downsampling to be one of .*got 'average'; use"),
        (
            {"downsampling": "max_pool", "num_blocks": 5},
            r"Expected images of at least 32 pixels a side.*got \(28, 28\); use fewer blocks",
        ),
    ],
)
def test_wrong_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        models.convolutional_network((28, 28, 1), 5, **arguments)
