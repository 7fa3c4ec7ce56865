"""What EnhancedSGD does to a gradient before momentum sees it: a pure function for each feature.

Formulas without a source are ours: the user's document names the features but gives no formula.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from lr_gym.optim.base import wide_norm
from lr_gym.optim.contrib.gradient_entropy import MAX_ENTROPY
from lr_gym.optim.contrib.noise import NoiseSource, sizes_of_norms
from lr_gym.optim.contrib.pooling import pooled_norms
from lr_gym.optim.distributed import local, shards

__all__ = [
    "blended_with_kept",
    "centred",
    "check_whole_rows",
    "entropy_factor",
    "kept_average",
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


def check_whole_rows(params: Sequence[Tensor]) -> None:
    """Raise a ValueError for tensors that are sharded along another dimension than the first.

    No rank holds a whole row of them, whose mean `centred` subtracts.
    """
    for param in params:
        for place in getattr(param, "placements", ()):
            if place.is_shard() and place.dim != 0 and shards(param) > 1:
                raise ValueError(
                    "EnhancedSGD(gradient_centering=True) takes parameters that are sharded along "
                    f"dimension 0; one of shape {tuple(param.shape)} is along dimension "
                    f"{place.dim}: leave gradient_centering out"
                )


def kept_average(state: dict[str, Any], param: Tensor) -> tuple[Tensor, Tensor]:
    """The average of the kept gradients and its mass (), made as zeros where they are missing.

    Args:
        state: state of the parameter.
        param: the parameter; where it is sharded, so is the average.
    """
    if "kept" not in state:
        state["kept"] = torch.zeros_like(param)
        state["kept_mass"] = torch.zeros((), device=param.device)
    return local(state["kept"]), state["kept_mass"]


def blended_with_kept(
    grad: Tensor, kept: Tensor, mass: Tensor, keep: Tensor, window: int
) -> Tensor:
    """0.9 g + 0.1 times the average of the kept gradients.

    Before any gradient is kept, g stays as it is.

    Args:
        grad: g.
        kept: the average of the kept gradients, changed in place.
        mass: () sum of its weights, which corrects its bias, changed in place.
        keep: () bool, whether g joins the average first.
        window: the average decays by 1 - 1 / window at each gradient that joins.
    """
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


def noisy(
    grads: Sequence[Tensor],
    params: Sequence[Tensor],
    source: NoiseSource,
    scale: float,
    ranks: Any | None,
) -> list[Tensor]:
    """Gradients with normal noise whose std is `scale` times the rms of that gradient.

    Args:
        grads: n gradients, what this rank holds of them.
        params: the n parameters, which may be sharded.
        source: the generators.
        scale: size of the noise over that of the gradient.
        ranks: the group of ranks, None for this process alone.
    """
    norms = pooled_norms([wide_norm(grad) for grad in grads], params, ranks)
    numels = [param.numel() for param in params]
    stds = [scale * size for size in sizes_of_norms(norms, numels, "rms", "parameter")]
    draws = source.normal(params)
    return [g + d.mul_(std.to(d.device)) for g, d, std in zip(grads, draws, stds, strict=True)]


def total_norm(
    grads: list[Tensor], params: Sequence[Tensor], device: torch.device, ranks: Any | None
) -> Tensor:
    """Euclidean norm () of all gradients together, without those that are not finite.

    Args:
        grads: n gradients, what this rank holds of them.
        params: the n parameters, which may be sharded.
        device: device of the result.
        ranks: the group of ranks, None for this process alone.
    """
    own = [norm.to(device, torch.float32) for norm in torch._foreach_norm(grads)]
    norms = torch.stack(pooled_norms(own, params, ranks))
    return torch.where(norms.isfinite(), norms, 0.0).square().sum().sqrt()
