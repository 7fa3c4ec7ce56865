"""Bayesian initialisation: parameters drawn from a Gaussian prior."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from lr_gym.optim.contrib.noise import NoiseSource
from lr_gym.optim.distributed import gathered, local, shards

__all__ = ["draw_from_prior_"]


@torch.no_grad()
def draw_from_prior_(params: Sequence[Tensor], noise: NoiseSource) -> None:
    """Draw parameters from N(mean, s^2), in place.

    s^2 is 1 / fan_in for matrices (Neal 1996) and 0.01^2 for vectors. The mean is that of the
    tensor's present values, so that the weights of normalisation layers stay near 1.

    Args:
        params: the parameters; an empty one is left out.
        noise: the generators.
    """
    for param, draw in zip(params, noise.normal(params), strict=True):
        if param.numel():
            spread = (param.numel() // param.shape[0]) ** -0.5 if param.ndim > 1 else 0.01
            whole = gathered(param) if shards(param) > 1 else local(param)
            local(param).copy_(whole.mean() + spread * draw)
