"""Lookahead (Zhang et al. 2019).

Every k steps slow weights move towards fast ones, which restart there.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

__all__ = ["lookahead_"]


def lookahead_(fast: Sequence[Tensor], slow: Sequence[Tensor], alpha: float) -> None:
    """Slow += alpha (fast - slow), fast = slow, in place."""
    torch._foreach_lerp_(list(slow), list(fast), alpha)
    torch._foreach_copy_(list(fast), list(slow))
