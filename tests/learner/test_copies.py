"""The copy of a model for one task predicts what the learner predicts, or is refused."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import amaml_tf as amaml

LAYERS = keras.layers
RNG = np.random.default_rng(0)


def examples(count=6):
    return tuple(tf.constant(RNG.normal(size=(1, count, d)), tf.float32) for d in (3, 1))


def network(*layers):
    return keras.Sequential([keras.Input((3,)), *layers, LAYERS.Dense(1)])


def learner_of(model):
    learner = amaml.MetaLearner(model, amaml.algorithms.MAML(0.05, 2))
    learner.compile("sgd", loss="mse", vectorize="off", jit_compile="off")
    return learner


def called(model):
    model(tf.zeros((1, 3)))
    return model


class Block(keras.layers.Layer):
    def __init__(self):
        super().__init__()
        self.dense = LAYERS.Dense(3)

    def call(self, x):
        return x + self.dense(x)


class WithoutArguments(keras.Model):
    """As most people write a model: Keras makes no configuration of it."""

    def __init__(self):
        super().__init__()
        self.normalization = LAYERS.Normalization()
        self.parts = [Block(), LAYERS.BatchNormalization(), LAYERS.Dropout(0.5), LAYERS.Dense(1)]

    def call(self, x):
        x = self.normalization(x)
        for part in self.parts:
            x = part(x)
        return x


def without_arguments():
    model = WithoutArguments()
    model.normalization.adapt(RNG.normal(5, 2, (50, 3)))
    return called(model)


def with_functions():
    factor = 3.0  # which a function has when it is called, and not in its code
    inner = keras.Sequential(
        [keras.Input((3,)), LAYERS.Lambda(lambda x: keras.ops.sin(x) * factor)]
    )
    power = LAYERS.Lambda(lambda x, n: x**n, output_shape=(3,), arguments={"n": 2})
    inputs = keras.Input((3,))
    return keras.Model(inputs, LAYERS.Dense(1)(power(inner(inputs))))


class MadeInBuild(keras.Model):
    def __init__(self):
        super().__init__()

    def build(self, shape):
        self.dense = LAYERS.Dense(1)
        self.dense.build(shape)
        self.built = True

    def call(self, x):
        return self.dense(x)


class Random(keras.layers.Layer):
    """Draws numbers at every call, by no seed of Keras."""

    def call(self, x):
        return x + tf.random.normal(tf.shape(x))


@pytest.mark.parametrize(
    "make",
    [without_arguments, lambda: called(MadeInBuild()), with_functions],
    ids=["layers in a list", "made in build", "functions"],
)
def test_models_that_no_configuration_describes(make):
    learner, episodes = learner_of(make()), (examples(), examples())
    copy = learner.adapt(tf.nest.map_structure(lambda v: v[0], episodes[0]))
    expected = learner.predict_episodes(episodes, query_statistics="support").after[1][0]
    np.testing.assert_allclose(copy(episodes[1][0][0]), expected, rtol=1e-4, atol=1e-5)


class Shift(keras.layers.Layer):
    by = 0.0

    def call(self, x):
        return x + self.by


def with_an_attribute():
    layer = Shift()
    model = network(layer)
    layer.by = 2.0
    return model


class Held(keras.layers.Layer):
    """Keras does not see a `tf.Variable`."""

    def __init__(self, **options):
        super().__init__(**options)
        self.factor = tf.Variable(1.0, trainable=False)

    def call(self, x):
        return x * self.factor


def with_a_variable_of_tensorflow():
    layer = Held()
    model = network(layer)
    layer.factor.assign(3.0)
    return model


class Scaled(keras.Model):
    def __init__(self, scale=1.0):
        super().__init__()
        self.scale, self.dense = scale, LAYERS.Dense(1)

    def call(self, x):
        return self.dense(x * self.scale)

    def get_config(self):
        return {}  # lacks the scale


@pytest.mark.parametrize(
    "make",
    [with_an_attribute, with_a_variable_of_tensorflow, lambda: called(Scaled(7.0))],
    ids=["attribute", "tf.Variable", "configuration"],
)
def test_a_copy_that_predicts_something_else_is_refused(make):
    support = tf.nest.map_structure(lambda v: v[0], examples())
    with pytest.raises(amaml.UsageError, match=r"\(its copy predicts something else\); build it"):
        learner_of(make()).adapt(support)


def test_a_model_that_is_random_differs_from_itself():
    x, y = tf.nest.map_structure(lambda v: v[0], examples())
    assert learner_of(network(Random())).adapt((x, y))(x).shape == (6, 1)


def test_a_copy_with_other_variables_is_refused():
    class Tied(keras.layers.Layer):
        """Shares the kernel of another layer, which a configuration cannot say."""

        def __init__(self, dense, **options):
            super().__init__(**options)
            self.dense = dense

        def call(self, x):
            return x @ tf.transpose(self.dense.kernel)

        def get_config(self):
            return {"dense": keras.saving.serialize_keras_object(self.dense)}

        @classmethod
        def from_config(cls, config):
            return cls(keras.saving.deserialize_keras_object(config["dense"]))

    dense = LAYERS.Dense(4)
    learner = learner_of(network(dense, Tied(dense)))
    with pytest.raises(amaml.UsageError, match=r"\(its copy has other variables\)"):
        learner.adapt(tf.nest.map_structure(lambda v: v[0], examples()))


def test_no_copy_has_names_of_its_own():
    """For every new name of a variable, TensorFlow keeps a kernel of 35 KiB for ever."""
    learner = learner_of(called(network(LAYERS.BatchNormalization())))

    def names():
        copy = learner.adapt(tuple(each[0] for each in examples()))
        copy.evaluate(*(each[0] for each in examples()), verbose=0)
        found = [*copy.variables, *copy.optimizer.variables, *copy.metrics_variables]
        return [variable.path for variable in found]

    first = names()
    assert len(first) == 10
    assert names() == first
