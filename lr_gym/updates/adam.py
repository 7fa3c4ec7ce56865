"""Adam (Kingma & Ba 2015, algorithm 1) and AdamW (Loshchilov & Hutter 2019, algorithm 2).

    m_t = beta1 m_{t-1} + (1 - beta1) g_t
    v_t = beta2 v_{t-1} + (1 - beta2) g_t^2
    w_t = w_{t-1} - lr (m_t / (1 - beta1^t)) / (sqrt(v_t / (1 - beta2^t)) + eps)

Both bias corrections are moved out of the tensors, into numbers per run, as Kingma & Ba propose at
the end of their section 2. With c_t = sqrt(1 - beta2^t) and the mass of m in place of 1 - beta1^t:

    direction = m_t / (sqrt(v_t) + eps c_t)
    factor    = c_t / mass_t

AdamW multiplies the weights by 1 - lr * weight_decay first; Adam adds weight_decay * w to g.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor

from lr_gym.updates.rule import BASE_WIDTH, BaseRule, MomentMasses, stretch

__all__ = ["UNIT_POWER", "Adam"]

# How the unit falls with the fan-in. It is measured: over 160 tasks one rate for all of them ends
# lower than with 0 or 1, and lower with units of at most 1 than without (docs/log.md).
UNIT_POWER = 0.5


@dataclasses.dataclass(frozen=True)
class Adam(BaseRule):
    """Adam, or with `decoupled` AdamW; the formulas are at the top of this file."""

    family: ClassVar[str] = "adam"

    def unit(self, shape: Sequence[int], *, embedding: bool = False) -> float:
        """(BASE_WIDTH / fan_in)^UNIT_POWER of a matrix, at most 1; 1 of vectors and embeddings.

        The input of an embedding has a single 1, so its effective fan-in does not grow with the
        width. A tensor of one row and three or more dimensions, as the positions and the class
        token of a vision transformer, is added to something and multiplies nothing.
        """
        multiplies_nothing = len(shape) < 2 or (len(shape) > 2 and shape[0] == 1)
        if multiplies_nothing or embedding:
            return 1.0
        fan_in = max(1, math.prod(shape[1:]))
        return min(1.0, float((BASE_WIDTH / fan_in) ** UNIT_POWER))

    def next_masses(self, masses: MomentMasses, momentum: Tensor) -> MomentMasses:
        """The masses after one more gradient."""
        return MomentMasses(
            torch.lerp(masses.first, torch.ones_like(masses.first), 1.0 - momentum),
            torch.lerp(masses.second, torch.ones_like(masses.second), 1.0 - self.beta2),
        )

    def advance_moments_(
        self, grad: Tensor, first: Tensor, second: Tensor | None, momentum: Tensor
    ) -> None:
        """Let a gradient join the moments, in place; a second moment that is None stays None."""
        first.lerp_(grad, stretch(1.0 - momentum, first).to(first.dtype))
        if second is not None:
            second.mul_(self.beta2).addcmul_(grad, grad, value=1.0 - self.beta2)

    def next_moments(
        self, grad: Tensor, first: Tensor, second: Tensor | None, momentum: Tensor
    ) -> tuple[Tensor, Tensor | None]:
        """The moments after `advance_moments_`; a second moment that is None stays None."""
        next_first = torch.lerp(first, grad, stretch(1.0 - momentum, first).to(first.dtype))
        if second is None:
            return next_first, None
        next_second = (second * self.beta2).addcmul_(grad, grad, value=1.0 - self.beta2)
        return next_first, next_second

    def direction(self, first: Tensor, second: Tensor | None, masses: MomentMasses) -> Tensor:
        """The quotient m / (sqrt(v) + eps c)."""
        assert second is not None
        denominator = second.sqrt().add_(stretch(self.eps * masses.second.sqrt(), second))
        return torch.div(first, denominator, out=denominator)

    def factor(self, masses: MomentMasses) -> Tensor:
        """The factor c / mass."""
        return masses.second.sqrt() / masses.first
