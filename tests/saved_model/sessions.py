"""A session on an export, as model servers have it: no Python checks what is fed."""

import numpy as np
import tensorflow as tf
from tensorflow.core.protobuf import config_pb2


class Session:
    """Runs the signatures of the version in `folder`."""

    def __init__(self, folder):
        self._session = tf.compat.v1.Session(graph=tf.Graph())
        with self._session.graph.as_default():
            graph = tf.compat.v1.saved_model.load(self._session, ["serve"], str(folder))
        self.signatures = graph.signature_def
        self._programs = {}

    def __call__(self, signature, **inputs):
        """Returns the answer by name; raises InvalidArgumentError as a server would."""
        if signature not in self._programs:
            definition = self.signatures[signature]
            names, outputs = list(definition.inputs), list(definition.outputs)
            options = config_pb2.CallableOptions(
                feed=[definition.inputs[name].name for name in names],
                fetch=[definition.outputs[name].name for name in outputs],
            )
            program = self._session._make_callable_from_options(options)
            self._programs[signature] = program, names, outputs
        program, names, outputs = self._programs[signature]
        return dict(zip(outputs, program(*(np.asarray(inputs[n]) for n in names)), strict=True))
