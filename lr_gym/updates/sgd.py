"""SGD with momentum, as in torch.optim.SGD.

Sutskever et al. (2013) have the learning rate inside the buffer; here it stays outside:

    buf_t = mu buf_{t-1} + g_t          direction
    w_t   = w_{t-1} - lr buf_t          factor = 1

The buffer is a sum of gradients, not a mean, so its mass exceeds 1: mass_t = mu mass_{t-1} + 1. The
update does not divide by it; the observation does (`control/layer_stats.py`).
"""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import torch
from torch import Tensor

from lr_gym.updates.rule import BaseRule, MomentMasses, stretch

__all__ = ["SGD"]


@dataclasses.dataclass(frozen=True)
class SGD(BaseRule):
    """SGD with momentum; the formulas are at the top of this file."""

    family: ClassVar[str] = "sgd"

    def next_masses(self, masses: MomentMasses, momentum: Tensor) -> MomentMasses:
        """The masses after one more gradient; SGD has no second moment, whose mass stays 0."""
        return MomentMasses(masses.first * momentum + 1.0, masses.second)

    def advance_moments_(
        self, grad: Tensor, first: Tensor, second: Tensor | None, momentum: Tensor
    ) -> None:
        """Let a gradient join the momentum buffer, in place."""
        first.mul_(stretch(momentum, first)).add_(grad)

    def next_moments(
        self, grad: Tensor, first: Tensor, second: Tensor | None, momentum: Tensor
    ) -> tuple[Tensor, Tensor | None]:
        """The momentum buffer after `advance_moments_`, and None."""
        return (first * stretch(momentum, first)).add_(grad), None

    def direction(self, first: Tensor, second: Tensor | None, masses: MomentMasses) -> Tensor:
        """The momentum buffer itself, not a copy."""
        return first

    def factor(self, masses: MomentMasses) -> Tensor:
        """1 for every run."""
        return torch.ones_like(masses.first)
