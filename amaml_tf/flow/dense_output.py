"""Dense output: u(t) between the steps of a recorded trajectory, by Hermite interpolation."""

from __future__ import annotations

from typing import NamedTuple

import tensorflow as tf

from amaml_tf.errors import UsageError
from amaml_tf.flow.segments import Segment
from amaml_tf.solvers.system import System


class DenseOutput(NamedTuple):
    """u(t) on one segment of a trajectory.

    Between two nodes, u is the Hermite polynomial of their values and derivatives. It is cubic, of
    local order 4, or, if second derivatives are given too, quintic, of local order 6.

    Attributes:
        jets: `[N + 1, B, D, P]`, u and its first D - 1 derivatives at the nodes; D is 2 or 3.
        segment: the segment with the nodes.
        start_time: `[B]`, the start of the segment.
        end_time: `[B]`, its end.
    """

    jets: tf.Tensor
    segment: Segment
    start_time: tf.Tensor
    end_time: tf.Tensor

    @classmethod
    def of(cls, system: System, segment: Segment, order: int) -> DenseOutput:
        """Returns u(t) for the trajectory of a solver of order `order`: quintic if it is above 4.

        This takes one evaluation of f at every node; for quintic polynomials, also one Jacobian
        product.

        Raises:
            UsageError: if `order` is above 4 and `system` has no `second_derivative`.
        """
        second_derivative = system.second_derivative if order > 4 else None
        if order > 4 and second_derivative is None:
            raise UsageError(
                f"Expected a System with second_derivative for a solver of order {order}, got one "
                "without. Give it one, or use a solver of lower order."
            )
        trajectory, last, final = segment.trajectory, segment.end - 1, segment.final_state
        start_time = trajectory.step(segment.first).time
        end_time = trajectory.step(last).time + trajectory.step(last).step_size
        nodes = trajectory.stack.capacity + 1

        def fill(n: tf.Tensor, jets: tf.TensorArray) -> tuple[tf.Tensor, tf.TensorArray]:
            step = tf.minimum(n, last)
            state = segment.rows.read(segment.row(step))
            state = tf.where(n == segment.end, final, state)
            time = tf.where(n == segment.end, end_time, trajectory.step(step).time)
            jet = [state, system.derivative(time, state)]
            if second_derivative is not None:
                jet.append(second_derivative(time, *jet))
            return n + 1, jets.write(n - segment.first, tf.stack(jet, axis=1))

        shape = [final.shape[0], 3 if second_derivative else 2, final.shape[1]]
        jets = tf.TensorArray(final.dtype, nodes, element_shape=shape, clear_after_read=False)
        _, jets = tf.while_loop(
            lambda n, *_: n <= segment.end, fill, (segment.first, jets), maximum_iterations=nodes
        )
        return cls(jets.stack(), segment, start_time, end_time)

    def at(self, time: tf.Tensor) -> tf.Tensor:
        """Returns u `[B, P]` at `time` `[B]`, for each row from the step that contains it."""
        trajectory, first, end = self.segment.trajectory, self.segment.first, self.segment.end
        steps = tf.range(trajectory.offsets.shape[0])[:, tf.newaxis]
        begun = (steps >= first) & (steps < end) & (trajectory.times <= time)
        at = tf.maximum(tf.reduce_sum(tf.cast(begun, tf.int32), axis=0) - 1, 0)
        rows = tf.range(tf.shape(time)[0])
        step = tf.stack([first + at, rows], axis=-1)
        h = tf.gather_nd(trajectory.step_sizes, step)
        elapsed = time - tf.gather_nd(trajectory.times, step)
        theta = tf.clip_by_value(tf.math.divide_no_nan(elapsed, h), 0, 1)
        here = tf.gather_nd(self.jets, tf.stack([at, rows], axis=-1))
        there = tf.gather_nd(self.jets, tf.stack([at + 1, rows], axis=-1))
        basis = _cubic if self.jets.shape[2] == 2 else _quintic
        return _combine(basis(theta), h, here) + _combine(basis(1 - theta), -h, there)


def _combine(basis: list[tf.Tensor], h: tf.Tensor, jet: tf.Tensor) -> tf.Tensor:
    """Sums basis_k h^k times derivative k over k; by symmetry it is the same for both ends."""
    weights = tf.stack([b * h**k for k, b in enumerate(basis)], axis=-1)
    return tf.reduce_sum(weights[..., tf.newaxis] * jet, axis=1)


def _cubic(theta: tf.Tensor) -> list[tf.Tensor]:
    rest = (1 - theta) ** 2
    return [rest * (1 + 2 * theta), rest * theta]


def _quintic(theta: tf.Tensor) -> list[tf.Tensor]:
    rest = (1 - theta) ** 3
    return [
        rest * (1 + 3 * theta + 6 * theta**2),
        rest * theta * (1 + 3 * theta),
        rest * theta**2 / 2,
    ]
