"""Entropy of the distribution of a gradient's elements, from a fixed-size sample of each tensor."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lr_gym.optim.contrib.pooling import any_sharded, pooled
from lr_gym.optim.distributed import shards

__all__ = [
    "BINS",
    "MAX_ENTROPY",
    "Distribution",
    "distribution",
    "gradient_samples",
    "histogram_entropy",
]

SAMPLE = 256  # elements of a sample

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


def gradient_samples(grads: Sequence[Tensor], size: int = SAMPLE) -> Tensor:
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


def distribution(
    grads: Sequence[Tensor], params: Sequence[Tensor], ranks: Any | None
) -> Distribution:
    """Entropy and variance of a sample of each of T gradients.

    Args:
        grads: T gradients, what this rank holds of them.
        params: the T parameters, which may be sharded.
        ranks: the group of ranks, None for this process alone.
    """
    if any_sharded(params, ranks):
        parts = [
            _part_of_sample(grad, param) if shards(param) > 1 else gradient_samples([grad])[0]
            for grad, param in zip(grads, params, strict=True)
        ]
        samples = pooled(torch.stack([part.to(grads[0].device) for part in parts]), params, ranks)
    else:
        samples = gradient_samples(grads)
    return Distribution(histogram_entropy(samples), samples.var(1, correction=0))


def _part_of_sample(grad: Tensor, param: Tensor) -> Tensor:
    """The elements (SAMPLE,) of `gradient_samples` that this rank holds, and 0 for the others.

    Args:
        grad: this rank's shard of a gradient.
        param: the whole parameter, a DTensor.
    """
    from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

    mesh, placements = param.device_mesh, param.placements  # type: ignore[attr-defined]
    _, start = compute_local_shape_and_global_offset(param.shape, mesh, placements)
    count = param.numel()
    places = torch.arange(SAMPLE)
    places = places * (count // SAMPLE) if count >= SAMPLE else places % count
    inside = torch.ones(SAMPLE, dtype=torch.bool)
    flat = torch.zeros(SAMPLE, dtype=torch.int64)  # positions within the shard
    for place, first, length in zip(
        torch.unravel_index(places, tuple(param.shape)), start, grad.shape, strict=True
    ):
        inside &= (place >= first) & (place < first + length)
        flat = flat * length + (place - first)
    if not bool(inside.any()):
        return torch.zeros(SAMPLE, device=grad.device)
    index = torch.where(inside, flat, 0).to(grad.device, non_blocking=True)
    values = grad.reshape(-1)[index].to(torch.float32)
    return torch.where(inside.to(grad.device, non_blocking=True), values, 0.0)
