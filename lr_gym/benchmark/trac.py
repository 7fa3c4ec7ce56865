"""TRAC (Muppidi, Zhang & Yang 2024, arXiv 2405.16642) that keeps the sum of its updates."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from scipy.special import erfi
from torch.optim import Optimizer

__all__ = ["StoredTrac"]

BETAS = np.array([0.9, 0.99, 0.999, 0.9999, 0.99999, 0.999999])  # of six tuners, as published
FIRST_SCALE = 1e-8
EPS = 1e-8


class StoredTrac(Optimizer):
    """An optimizer around another one, which scales how far the weights are from their start.

    With the sum D of the inner optimizer's updates, weights w = start + S D, and the gradient g:

        h = <g, D>;  v_j <- beta_j^2 v_j + h^2;  sigma_j <- beta_j sigma_j - h;
        S = max(0, sum_j FIRST_SCALE erfi(sigma_j / (sqrt(2 v_j) + EPS)) / erfi(1 / sqrt(2)))

    The code that its authors published, and that of pytorch_optimizer, stores no D and takes
    (w - start) / S for it. Once S is 0, that is 0 for ever, and the weights stay at their start. On
    noisy streams this happens in the first steps of many trainings.
    """

    def __init__(self, inner: Optimizer) -> None:
        """Note where the weights start.

        Args:
            inner: makes the updates.
        """
        super().__init__(inner.param_groups, {})
        # the base class copies the groups, and the inner optimizer reads its own
        self.param_groups = inner.param_groups
        self._inner = inner
        self._params = [p for group in self.param_groups for p in group["params"]]
        self._start = [p.detach().clone() for p in self._params]
        self._sum = [torch.zeros_like(p) for p in self._start]
        self._variance = np.zeros(len(BETAS))
        self._sigma = np.full(len(BETAS), FIRST_SCALE)
        self.scale = 0.0

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Step the inner optimizer, and move the weights to where the new scale wants them."""
        before = [p.clone() for p in self._params]
        graded = [
            (p, d) for p, d in zip(self._params, self._sum, strict=True) if p.grad is not None
        ]
        h = math.fsum(float((p.grad.double() * d).sum()) for p, d in graded)
        self._inner.step()
        self._variance = BETAS**2 * self._variance + h**2
        self._sigma = BETAS * self._sigma - h
        terms = erfi(self._sigma / (np.sqrt(2.0 * self._variance) + EPS))
        self.scale = max(0.0, FIRST_SCALE * float(terms.sum()) / float(erfi(0.5**0.5)))
        for p, old, start, total in zip(self._params, before, self._start, self._sum, strict=True):
            total.add_(p - old)
            p.copy_(start + self.scale * total)
