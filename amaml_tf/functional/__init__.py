"""A Keras model and its loss as pure functions of parameter vectors."""
