"""Gradient noise: the control "noise" adds it to the gradient of every tensor."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from lr_gym.rng import Stream, normal
from lr_gym.updates.rule import stretch

__all__ = ["gradient_noise", "rms"]


def rms(x: Tensor) -> Tensor:
    """Root mean square over all but the first dimension: (B,); 0 for a tensor without elements."""
    if x.ndim == 1:
        return x.abs()
    count = max(1, x[0].numel())
    norm: Tensor = torch.linalg.vector_norm(x, dim=tuple(range(1, x.ndim)))
    return norm * (1.0 / math.sqrt(count))


def gradient_noise(
    grad: Tensor, level: Tensor, run_seed: Tensor, step: Tensor | int, start: int
) -> Tensor:
    """Normal noise (B, *shape) with the standard deviation level * rms(grad) in each run.

    Args:
        grad: (B, *shape) gradient of one tensor.
        level: (B,) ratio of the noise to the gradient's root mean square.
        run_seed: (B,) int64.
        step: inner step, an int or (B,).
        start: number of parameter elements before this tensor in the model, so that no two elements
            share a random number.
    """
    count = grad[0].numel()
    draw = normal(run_seed, Stream.NOISE, step, count, start=start, dtype=grad.dtype)
    return draw.view(grad.shape) * stretch(level * rms(grad), grad).to(grad.dtype)
