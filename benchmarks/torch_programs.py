"""The meta-gradient of the CNN in PyTorch, as its users write it; for comparison."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias

import numpy as np
import torch
from torch.nn import functional

from amaml_tf.episodes import Episodes

#: Inputs and targets of the support sets, and of the query sets.
Tensors: TypeAlias = list[tuple[torch.Tensor, torch.Tensor]]


def convolutional(parameters: list[torch.Tensor], x: torch.Tensor) -> torch.Tensor:
    """Returns the outputs of the CNN, as `jax_programs.convolutional` does; images are NCHW."""
    *blocks, kernel, bias = parameters
    for i in range(0, len(blocks), 3):
        weights, scale, offset = blocks[i : i + 3]
        left = 0 if x.shape[-1] % 2 == 0 else 1  # as TensorFlow pads
        x = functional.conv2d(functional.pad(x, (left, 1, left, 1)), weights, stride=2)
        x = functional.batch_norm(x, None, None, scale, offset, training=True, eps=1e-3)
        x = functional.relu(x)
    return torch.mean(x, (2, 3)) @ kernel + bias


def parameters_of(weights: Sequence[np.ndarray]) -> list[torch.Tensor]:
    """Returns the parameters from those of Keras, whose kernels are HWIO."""
    tensors = [torch.tensor(w.transpose(3, 2, 0, 1) if w.ndim == 4 else w) for w in weights]
    return [tensor.contiguous().requires_grad_() for tensor in tensors]


def tensors_of(episodes: Episodes) -> Tensors:
    """Returns the episodes as tensors, images as NCHW and classes as int64."""
    found = []
    for examples in episodes:
        x, y = (np.asarray(part) for part in examples)
        images = torch.tensor(x.transpose(0, 1, 4, 2, 3)).contiguous()
        found.append((images, torch.tensor(y, dtype=torch.int64)))
    return found


def meta_gradient(
    parameters: list[torch.Tensor], episodes: Tensors, step_size: float, num_steps: int
) -> list[np.ndarray]:
    """Returns the meta-gradient of steps of gradient descent, with kernels as Keras has them."""
    (support_x, support_y), (query_x, query_y) = episodes
    for i in range(len(support_x)):  # the gradients add up
        u = parameters
        for _ in range(num_steps):
            loss = functional.cross_entropy(convolutional(u, support_x[i]), support_y[i])
            slopes = torch.autograd.grad(loss, u, create_graph=True)
            u = [w - step_size * slope for w, slope in zip(u, slopes, strict=True)]
        loss = functional.cross_entropy(convolutional(u, query_x[i]), query_y[i])
        (loss / len(support_x)).backward()
    found = [p.grad.numpy().copy() for p in parameters]
    for parameter in parameters:
        parameter.grad = None
    return [g.transpose(2, 3, 1, 0) if g.ndim == 4 else g for g in found]
