"""Agreement scores: how well the elements of a gradient, or its values over time, agree."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from lr_gym.optim.base import wide_norm
from lr_gym.optim.batching import in_blocks
from lr_gym.optim.contrib.pooling import any_sharded, pooled, pooled_norms
from lr_gym.optim.distributed import local

__all__ = ["SCORES", "agreement_scores", "population_std", "snr_memory"]

SCORES = ("std", "std_over_rms", "snr")
# Keys of a parameter's state: gradients seen, their mean, and the mean of their squared norms.
SNR_KEYS = ("agreement_step", "agreement_mean", "agreement_power")


def agreement_scores(
    score: str,
    grads: Sequence[Tensor],
    memories: Sequence[Mapping[str, Any]],
    beta: float,
    ranks: Any | None,
) -> tuple[list[Tensor], list[dict[str, Any]]]:
    """The scores s () of n gradients.

        std           s = 1 / (1 + std(g))                     as in the user's document
        std_over_rms  s = 1 / (1 + std(g) / rms(g))            ours, because it has no scale
        snr           s = |m|^2 / v, averages over time        ours, because Adam does not undo it

    Args:
        score: one of SCORES.
        grads: n gradients g, which may be sharded.
        memories: state of each parameter, with the averages of "snr" if there are any yet; these
            are updated in place.
        beta: their decay.
        ranks: the group of ranks, None for this process alone.

    Returns:
        The scores, and what the state of each parameter is to hold.
    """
    if score == "snr":
        return _snr_(grads, memories, beta, ranks)
    norms = [wide_norm(local(grad)) for grad in grads] if score == "std_over_rms" else []
    if any_sharded(grads, ranks):
        stds, norms = _pooled_stds(grads, ranks)
    else:
        stds = [population_std(local(grad)) for grad in grads]
    if score == "std_over_rms":
        roots = [norm / math.sqrt(grad.numel()) for norm, grad in zip(norms, grads, strict=True)]
        stds = [torch.where(r == 0, 0.0, std / r) for std, r in zip(stds, roots, strict=True)]
    return [1 / (1 + std) for std in stds], [{} for _ in grads]


def _pooled_stds(grads: Sequence[Tensor], ranks: Any) -> tuple[list[Tensor], list[Tensor]]:
    """Standard deviations () and norms () of n gradients of which some are sharded.

    n var = sum g^2 - (sum g)^2 / n cancels where the mean dominates, hence float64.
    """
    rows = []
    for grad in grads:
        wide = local(grad).to(torch.float64)
        rows.append(torch.stack([wide.sum(), wide.square().sum()]))
    table = pooled(torch.stack([row.to(rows[0].device) for row in rows]), grads, ranks)  # (n, 2)
    stds = []
    norms = []
    for grad, (total, square) in zip(grads, table.unbind(), strict=True):
        dtype = torch.promote_types(grad.dtype, torch.float32)
        variance = (square - total.square() / grad.numel()) / grad.numel()
        stds.append(variance.clamp_min(0.0).sqrt().to(grad.device, dtype))
        norms.append(square.sqrt().to(grad.device, dtype))
    return stds, norms


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


def snr_memory(grad: Tensor) -> dict[str, Any]:
    """The averages of "snr" before the first gradient, by their keys in a parameter's state."""
    return {
        "agreement_step": 0,
        "agreement_mean": torch.zeros_like(grad),
        "agreement_power": torch.zeros_like(wide_norm(local(grad))),
    }


def _snr_(
    grads: Sequence[Tensor],
    memories: Sequence[Mapping[str, Any]],
    beta: float,
    ranks: Any | None,
) -> tuple[list[Tensor], list[dict[str, Any]]]:
    """Temporal signal-to-noise ratios |m|^2 / v () in [0, 1].

    m averages the gradient and v its squared norm. Both averages have the same weights, so
    Jensen's inequality bounds the ratio. It is 1 while all gradients are equal and about
    (1 - beta) / (1 + beta) where they are independent.
    """
    fresh = []
    norms = []
    for grad, memory in zip(grads, memories, strict=True):
        known = "agreement_step" in memory
        own = {key: memory[key] for key in SNR_KEYS} if known else snr_memory(grad)
        own["agreement_step"] += 1
        mean = local(own["agreement_mean"])
        mean.lerp_(local(grad), 1 - beta)
        norms.append(torch.stack([wide_norm(local(grad)), wide_norm(mean)]))
        fresh.append(own)
    norms = pooled_norms(norms, grads, ranks)
    scores = []
    for own, both in zip(fresh, norms, strict=True):
        power = own["agreement_power"]
        power.lerp_(both[0].square().to(power), 1 - beta)
        # With the mass w = 1 - beta^t of both averages, |m / w|^2 / (v / w) = |m|^2 / (v w).
        ratio = both[1].square().to(power) / (power * (1 - beta ** own["agreement_step"]))
        scores.append(torch.where(power == 0, 1.0, ratio))
    return scores, fresh
