"""Agreement scores: how well the elements of a gradient, or its values over time, agree."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from lr_gym.optim.base import wide_norm
from lr_gym.optim.batching import in_blocks

__all__ = ["SCORES", "agreement_score", "population_std"]

SCORES = ("std", "std_over_rms", "snr")


def agreement_score(score: str, grad: Tensor, memory: dict[str, Any], beta: float) -> Tensor:
    """The score s () of one gradient.

        std           s = 1 / (1 + std(g))                     as in the user's document
        std_over_rms  s = 1 / (1 + std(g) / rms(g))            ours, because it has no scale
        snr           s = |m|^2 / v, averages over time        ours, because Adam does not undo it

    Args:
        score: one of SCORES.
        grad: g.
        memory: the averages of "snr", which are updated.
        beta: their decay.
    """
    if score == "snr":
        return _snr_(grad, memory, beta)
    std = population_std(grad)
    if score == "std_over_rms":
        rms = wide_norm(grad) / math.sqrt(grad.numel())
        std = torch.where(rms == 0, 0.0, std / rms)
    return 1 / (1 + std)


def population_std(grad: Tensor) -> Tensor:
    """Standard deviation () over all elements, in at least float32.

    On a CPU each block that fits the cache is centred on its own mean m_k, and
    n var = sum_k |g_k - m_k|^2 + n_k (m_k - m)^2 (Chan, Golub & LeVeque 1979), which reads memory
    once. E[g^2] - E[g]^2 would read it once too, but cancels where the mean dominates.
    """
    dtype = torch.promote_types(grad.dtype, torch.float32)
    if grad.device.type != "cpu":
        return grad.to(dtype).std(correction=0)  # accelerators have a fused kernel
    means = []
    squares = []
    counts = []
    for (block,) in in_blocks(grad):
        wide = block.to(dtype).reshape(-1)
        mean = wide.mean()
        wide = wide - mean
        squares.append(torch.dot(wide, wide))
        means.append(mean)
        counts.append(block.numel())
    if len(counts) == 1:
        return (squares[0] / counts[0]).sqrt()
    weights = torch.tensor(counts, dtype=dtype) / grad.numel()
    column = torch.stack(means)
    between = (column - (weights * column).sum()).square()
    return (torch.stack(squares).sum() / grad.numel() + (weights * between).sum()).sqrt()


def _snr_(grad: Tensor, memory: dict[str, Any], beta: float) -> Tensor:
    """Temporal signal-to-noise ratio |m|^2 / v () in [0, 1].

    m averages the gradient and v its squared norm. Both averages have the same weights, so
    Jensen's inequality bounds the ratio. It is 1 while all gradients are equal and about
    (1 - beta) / (1 + beta) where they are independent.
    """
    if not memory:
        memory.update(step=0, mean=torch.zeros_like(grad), power=torch.zeros_like(wide_norm(grad)))
    memory["step"] += 1
    mean = memory["mean"]
    power = memory["power"]
    mean.lerp_(grad, 1 - beta)
    power.lerp_(wide_norm(grad).square(), 1 - beta)
    # With the mass w = 1 - beta^t of both averages, |m / w|^2 / (v / w) = |m|^2 / (v w).
    ratio = wide_norm(mean).square() / (power * (1 - beta ** memory["step"]))
    return torch.where(power == 0, 1.0, ratio)
