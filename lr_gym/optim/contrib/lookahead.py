"""Lookahead (Zhang et al. 2019): every k steps slow weights move to the fast ones, which follow."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

__all__ = ["lookahead_"]


def lookahead_(fast: Sequence[Tensor], slow: Sequence[Tensor], alpha: float) -> None:
    """One update of the slow weights, in place: slow += alpha (fast - slow), fast = slow."""
    torch._foreach_lerp_(list(slow), list(fast), alpha)
    torch._foreach_copy_(list(fast), list(slow))
