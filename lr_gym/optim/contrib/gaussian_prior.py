"""Bayesian initialisation: parameters drawn from a Gaussian prior."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from lr_gym.optim.contrib.noise import NoiseSource

__all__ = ["draw_from_prior_"]


@torch.no_grad()
def draw_from_prior_(params: Sequence[Tensor], noise: NoiseSource) -> None:
    """Draw parameters from N(mean, s^2), in place.

    S^2 = 1 / fan_in for matrices, 0.01^2 for vectors.

    The mean is that of the tensor's present values, so that normalisation weights stay near 1.
    Scale: Neal 1996.
    """
    for param, draw in zip(params, noise.normal(params), strict=True):
        if param.numel():
            spread = param[0].numel() ** -0.5 if param.ndim > 1 else 0.01
            param.copy_(param.mean() + spread * draw)
