"""What EnhancedSGD does to a gradient before momentum sees it, one pure function for each feature."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from lr_gym.optim.contrib.gradient_entropy import MAX_ENTROPY

__all__ = ["blended_with_kept", "centred", "entropy_factor", "variance_factor"]

_KEPT_SHARE = 0.1


def centred(grad: Tensor) -> Tensor:
    """The gradient minus its mean over all dimensions but the first (Yong et al. 2020).

    Vectors as they are.
    """
    return grad - grad.mean(dim=tuple(range(1, grad.ndim)), keepdim=True) if grad.ndim > 1 else grad


def blended_with_kept(grad: Tensor, state: dict[str, Any], keep: Tensor, window: int) -> Tensor:
    """0.9 g + 0.1 of the average of the kept gradients, which this one joins first where `keep` is True.

    The average decays with 1 - 1 / window at each gradient that joins; `state` holds it with its mass, the sum of its
    weights. Before the first one is kept the gradient stays as it is.
    """
    if "kept" not in state:
        state["kept"] = torch.zeros_like(grad)
        state["kept_mass"] = torch.zeros((), device=grad.device)
    kept, mass = state["kept"], state["kept_mass"]
    weight = keep.to(grad.device, torch.float32) / window
    kept.lerp_(grad, weight.to(grad.dtype))
    mass.lerp_(torch.ones_like(weight), weight)
    share = torch.where(mass > 0, _KEPT_SHARE, 0.0)
    return (grad * (1 - share)).addcmul_(kept, torch.where(mass > 0, share / mass, 0.0))


def entropy_factor(entropy: Tensor, mean: Tensor) -> Tensor:
    """Factor (T,) on gradients, 1 + (H - mean H) / (2 log 32), in [1/2, 3/2].

    1 where H is unknown.
    """
    return 1 + ((entropy - mean) / (2 * MAX_ENTROPY)).nan_to_num()


def variance_factor(variance: Tensor, mean: Tensor) -> Tensor:
    """Factor (T,) on the lr, (V / mean V)^(-1/4) in [2/3, 3/2].

    1 where either vanishes or is not finite.
    """
    ratio = torch.where((mean > 0) & (variance > 0), variance / mean, 1.0)
    return ratio.pow(-0.25).nan_to_num(1.0).clamp(2 / 3, 3 / 2)
