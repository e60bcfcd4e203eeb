"""Meta-learning with the training interface of Keras."""
