"""Which elements of a large tensor are measured: runs of them that lie side by side, evenly spaced."""

from __future__ import annotations

import math

from torch import Tensor

__all__ = ["sampled", "stride_of"]

RUN = 16  # elements; what a CPU's cache reads at once


def stride_of(elements: int, sample: int | None) -> int:
    """Distance of the runs of elements that are measured, in runs; 1 for all.

    It shares no divisor with their number, so that no column of a matrix is missed each time.

    Args:
        elements: of the tensor.
        sample: about how many are measured, where there are over 4 times as many; None for all.
    """
    runs = elements // RUN
    if sample is None or elements <= 4 * sample or runs < 2:
        return 1
    stride = elements // sample
    while math.gcd(stride, runs) > 1:
        stride += 1
    return stride


def sampled(tensor: Tensor, stride: int) -> Tensor:
    """Every stride-th run of a tensor's elements, flat."""
    return tensor.reshape(-1)[: tensor.numel() // RUN * RUN].view(-1, RUN)[::stride].reshape(-1)
