"""Shrink and perturb: weights that keep a little of their start, against a loss of plasticity."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.optim.optimizer import ParamsT

__all__ = ["NOISE", "SHRINKAGE", "ShrinkAndPerturb"]

SHRINKAGE = 1e-4  # share of every weight that is taken away at a step
NOISE = 1e-3  # standard deviation of what is added at a step, in units of that of initial weights


class ShrinkAndPerturb(torch.optim.AdamW):
    """AdamW, after each step of which weights are shrunk and perturbed.

    w <- (1 - SHRINKAGE) w + NOISE s z, where s is the standard deviation of the tensor's initial
    weights and z standard normal (Ash & Adams 2020, equation 1). They do it once before each new
    part of the data; on a stream nobody knows when that is, so it is done a little at every step,
    as in Dohare et al. (2024). A tensor that starts from zeros is not perturbed. The two constants
    are ours: a weight without a gradient forgets its start over 10,000 steps.
    """

    def __init__(self, params: ParamsT, lr: float = 1e-3, *, seed: int = 0) -> None:
        """Note how large the initial weights are.

        Args:
            params: parameters or parameter groups, with their initial values.
            lr: learning rate of AdamW, whose other options are torch's.
            seed: seed of the noise.
        """
        super().__init__(params, lr)
        tensors = [p for group in self.param_groups for p in group["params"]]
        self._noise = [(p, NOISE * float(p.detach().std(correction=0))) for p in tensors]
        self._generator = torch.Generator(tensors[0].device).manual_seed(seed)

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Step as AdamW, then shrink and perturb; return the closure's loss."""
        loss = super().step(closure)
        with torch.no_grad():
            for p, size in self._noise:
                z = torch.empty_like(p).normal_(generator=self._generator)
                p.mul_(1.0 - SHRINKAGE).add_(z, alpha=size)
        return loss
