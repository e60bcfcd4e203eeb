"""The meta-update: applied as a whole, or undone if it is not finite."""

from __future__ import annotations

from collections.abc import Sequence

import keras
import tensorflow as tf

_GRADIENT = (
    "the meta-gradient is infinite or NaN. Look for a loss or a layer without a finite derivative "
    "there; otherwise a smaller final_time or step size helps"
)
_WEIGHTS = (
    "the meta-update made weights infinite or NaN. A smaller learning rate of the meta-updates, or "
    "clipping of the meta-gradient, helps"
)


def apply_if_finite(
    optimizer: keras.optimizers.Optimizer,
    gradients: Sequence[tf.Tensor],
    variables: Sequence[keras.Variable],
    is_sound: tf.Tensor,
    *,
    counts_undone: bool,
) -> tuple[tf.Tensor, tf.Tensor]:
    """Applies a meta-gradient. What is not finite leaves variables and optimizer as they were.

    Args:
        optimizer: of the meta-updates.
        gradients: aligned with `variables`, without the scale of a loss-scaling optimizer.
        variables: what is learned.
        is_sound: bool scalar, False to change nothing in any case.
        counts_undone: whether an update that is undone counts among the optimizer's iterations.

    Returns:
        Whether the update stands, a bool scalar, and why it does not, a string.
    """
    if not optimizer.built:
        optimizer.build(variables)
    # `optimizer.iterations` is no variable if the optimizer accumulates gradients.
    state = [v for v in optimizer.variables if not (counts_undone and v.name == "iteration")]
    kept = [*variables, *state]
    before = [tf.identity(variable.value) for variable in kept]
    is_gradient_finite = _are_finite(gradients)
    # Without this, the iterations would be counted even for a batch that never came.
    with tf.control_dependencies([is_gradient_finite]):
        # The optimizer divides what it applies by the scale of the loss, if it has one.
        scaled = [optimizer.scale_loss(each) for each in gradients]
        optimizer.apply_gradients(zip(scaled, variables, strict=True))  # as `Model.fit` does
    stands = is_sound & is_gradient_finite & _are_finite([each.value for each in variables])

    def undo() -> tf.Tensor:
        for variable, value in zip(kept, before, strict=True):
            variable.assign(value)
        return tf.constant(False)

    stands = tf.cond(stands, lambda: tf.constant(True), undo)
    return stands, tf.where(is_gradient_finite, _WEIGHTS, _GRADIENT)


def _are_finite(tensors: Sequence[tf.Tensor]) -> tf.Tensor:
    return tf.reduce_all([tf.reduce_all(tf.math.is_finite(tensor)) for tensor in tensors])
