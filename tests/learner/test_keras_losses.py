"""Every loss of Keras is the loss of `Model.evaluate`, for labels of every form."""

from typing import Any

import keras
import keras_lists
import numpy as np
import pytest
import tensorflow as tf

from amaml_tf.functional.loss import TaskLoss

LOSSES: dict[str, Any] = {
    **{name: lambda name=name: name for name in keras_lists.names(keras.losses)},
    **keras_lists.classes(keras.losses, keras.losses.Loss),
}
WEIGHTS = np.linspace(0.5, 2.0, keras_lists.COUNT).astype("float32")


@pytest.mark.long
@pytest.mark.parametrize("weights", [None, WEIGHTS], ids=["plain", "weights"])
@pytest.mark.parametrize("name", LOSSES)
def test_a_loss_is_that_of_a_keras_model(name, weights):
    numbers = 0
    for what, outputs, labels in keras_lists.examples():
        make = LOSSES[name]
        model = keras_lists.identity(outputs.shape[1:], loss=make())
        expected = keras_lists.of_keras(model, outputs, labels, weights)
        weight = None if weights is None else tf.constant(weights)
        call = (tf.constant(labels), tf.constant(outputs), weight)
        if isinstance(expected, Exception):
            with pytest.raises(Exception):  # noqa: B017, PT011 - as Keras, whichever
                TaskLoss(make(), tf.float32)(*call)
            continue
        found = TaskLoss(make(), tf.float32)(*call)
        np.testing.assert_allclose(found, expected["loss"], rtol=1e-5, err_msg=what)
        numbers += bool(np.isfinite(expected["loss"]))
    assert numbers
