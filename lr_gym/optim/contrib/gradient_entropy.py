"""Entropy of the distribution of a gradient's elements, from a fixed-size sample of each tensor."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

__all__ = [
    "BINS",
    "MAX_ENTROPY",
    "Distribution",
    "distribution",
    "gradient_samples",
    "histogram_entropy",
]

BINS = 32
MAX_ENTROPY = math.log(BINS)  # nats, the entropy of a uniform histogram
RANGE = 4.0  # the histogram covers +-4 rms; elements outside count in the outermost bins


class Distribution(NamedTuple):
    """What is known of the elements of each of T gradients.

    Attributes:
        entropy: (T,) entropy of the histogram in nats.
        variance: (T,) variance of the elements.
    """

    entropy: Tensor
    variance: Tensor


def gradient_samples(grads: Sequence[Tensor], size: int = 256) -> Tensor:
    """Evenly spaced elements (T, size) of each of T gradients, as float32.

    A tensor of fewer elements repeats them.
    """
    rows = []
    for grad in grads:
        count = grad.numel()
        flat = grad.reshape(-1)
        if count >= size:
            rows.append(flat[:: count // size][:size])
        else:
            rows.append(flat.repeat(-(-size // count))[:size])
    return torch.stack([row.to(grads[0].device, torch.float32) for row in rows])


def histogram_entropy(samples: Tensor) -> Tensor:
    """Entropy (T,) in nats of the histogram of each row over +-4 rms, in [0, log 32].

    The bins scale with the row's rms, so the entropy depends on the shape of the distribution
    only. It is about 2.8 for normal elements, less where few elements carry the gradient, and 0
    for a zero gradient. It is NaN where an element is not finite.
    """
    rms = samples.square().mean(1, keepdim=True).sqrt()
    scaled = torch.where(rms > 0, samples / rms, 0.0)
    bins = ((scaled + RANGE) * (BINS / (2 * RANGE))).nan_to_num().clamp(0, BINS - 1).long()
    counts = torch.zeros(len(samples), BINS, device=samples.device)
    counts.scatter_add_(1, bins, torch.ones_like(samples))
    entropy = torch.special.entr(counts / samples.shape[1]).sum(1)
    return torch.where(rms.squeeze(1).isfinite(), entropy, torch.nan)


def distribution(grads: Sequence[Tensor]) -> Distribution:
    """Entropy and variance of a sample of each of T gradients."""
    samples = gradient_samples(grads)
    return Distribution(histogram_entropy(samples), samples.var(1, correction=0))
