"""What EnhancedSGD does to a gradient before momentum sees it: a pure function for each feature.

Formulas without a source are ours: the user's document names the features but gives no formula.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from lr_gym.optim.contrib.gradient_entropy import MAX_ENTROPY
from lr_gym.optim.contrib.noise import NoiseSource, gradient_sizes

__all__ = [
    "blended_with_kept",
    "centred",
    "entropy_factor",
    "noisy",
    "total_norm",
    "variance_factor",
]

KEPT_WEIGHT = 0.1  # of the kept average in the blended gradient


def centred(grad: Tensor) -> Tensor:
    """The gradient minus its mean over all dimensions but the first (Yong et al. 2020).

    Gradients of fewer than two dimensions stay as they are.
    """
    if grad.ndim < 2:
        return grad
    return grad - grad.mean(dim=tuple(range(1, grad.ndim)), keepdim=True)


def blended_with_kept(grad: Tensor, state: dict[str, Any], keep: Tensor, window: int) -> Tensor:
    """0.9 g + 0.1 times the average of the kept gradients.

    Before any gradient is kept, g stays as it is.

    Args:
        grad: g.
        state: holds the average and its mass, the sum of its weights, which corrects its bias.
        keep: () bool, whether g joins the average first.
        window: the average decays by 1 - 1 / window at each gradient that joins.
    """
    if "kept" not in state:
        state["kept"] = torch.zeros_like(grad)
        state["kept_mass"] = torch.zeros((), device=grad.device)
    kept = state["kept"]
    mass = state["kept_mass"]
    weight = keep.to(grad.device, torch.float32) / window
    kept.lerp_(grad, weight.to(grad.dtype))
    mass.lerp_(torch.ones_like(weight), weight)
    share = torch.where(mass > 0, KEPT_WEIGHT, 0.0)
    return (grad * (1 - share)).addcmul_(kept, torch.where(mass > 0, share / mass, 0.0))


def entropy_factor(entropy: Tensor, mean: Tensor) -> Tensor:
    """Factor (T,) on gradients, 1 + (H - mean H) / (2 log 32), in [1/2, 3/2].

    It is 1 where H is unknown.
    """
    return 1 + ((entropy - mean) / (2 * MAX_ENTROPY)).nan_to_num()


def variance_factor(variance: Tensor, mean: Tensor) -> Tensor:
    """Factor (T,) on the lr, (V / mean V)^(-1/4) in [2/3, 3/2].

    It is 1 where either variance vanishes or is not finite.
    """
    ratio = torch.where((mean > 0) & (variance > 0), variance / mean, 1.0)
    return ratio.pow(-0.25).nan_to_num(1.0).clamp(2 / 3, 3 / 2)


def noisy(grads: Sequence[Tensor], source: NoiseSource, scale: float) -> list[Tensor]:
    """Gradients with normal noise whose std is `scale` times the rms of that gradient."""
    stds = [scale * size for size in gradient_sizes(grads, "rms", "parameter")]
    draws = source.normal(grads)
    return [g + d.mul_(std) for g, d, std in zip(grads, draws, stds, strict=True)]


def total_norm(grads: list[Tensor], device: torch.device) -> Tensor:
    """Euclidean norm () of all gradients together, without those that are not finite."""
    norms = torch.stack([norm.to(device, torch.float32) for norm in torch._foreach_norm(grads)])
    return torch.where(norms.isfinite(), norms, 0.0).square().sum().sqrt()
