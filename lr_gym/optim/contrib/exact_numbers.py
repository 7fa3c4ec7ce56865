"""Python's numbers as tensors that no tool rounds on its way through a checkpoint."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

__all__ = ["exact", "numbers_of"]


def exact(numbers: Sequence[float]) -> Tensor:
    """The bits (n,) of numbers in float64, as int64, because not every device has float64."""
    return torch.tensor(numbers, dtype=torch.float64).view(torch.int64)


def numbers_of(tensor: Tensor) -> list[float]:
    """Inverse of `exact`."""
    return tensor.cpu().view(torch.float64).tolist()
