"""Running mean and variance of a signal, and clipping and spike detection made of them."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

__all__ = [
    "RunningMoments",
    "clip_factor",
    "compared",
    "corrected_for_spike",
    "grown",
    "observe",
    "running_moments",
]

WARMUP = 10  # observations before the variance is trusted


class RunningMoments(NamedTuple):
    """Averages of a signal of any shape.

    Attributes:
        mean: running mean.
        variance: running variance.
        seen: number of observations, as float.
    """

    mean: Tensor
    variance: Tensor
    seen: Tensor

    def limit(self, deviations: float) -> Tensor:
        """Mean plus so many standard deviations; infinite before WARMUP observations."""
        limit = self.mean + deviations * self.variance.sqrt()
        return torch.where(self.seen >= WARMUP, limit, torch.inf)


def running_moments(shape: tuple[int, ...], device: torch.device) -> RunningMoments:
    """Moments before the first observation."""
    return RunningMoments(*(torch.zeros(shape, device=device) for _ in range(3)))


def observe(moments: RunningMoments, value: Tensor, rate: float) -> RunningMoments:
    """Let a value join: as in a plain mean at first, later with decay 1 - rate.

    A value that is not finite is ignored. The formula is that of West, "Updating mean and variance
    estimates", CACM 1979, in its exponentially weighted form.

    Args:
        moments: moments until now.
        value: a value of the signal's shape.
        rate: smallest weight of a new value.
    """
    weight = (1 / (moments.seen + 1)).clamp_min(rate)
    difference = value - moments.mean
    fresh = RunningMoments(
        moments.mean + weight * difference,
        (1 - weight) * (moments.variance + weight * difference.square()),
        moments.seen + 1,
    )
    valid = value.isfinite()
    return RunningMoments(
        *(torch.where(valid, new, old) for new, old in zip(fresh, moments, strict=True))
    )


def grown(moments: RunningMoments, count: int) -> RunningMoments:
    """Moments (count,), with empty rows behind those (N,) that are there."""
    missing = count - len(moments.mean)
    if missing <= 0:
        return moments
    empty = running_moments((missing,), moments.mean.device)
    return RunningMoments(*(torch.cat([old, new]) for old, new in zip(moments, empty, strict=True)))


def compared(
    moments: RunningMoments, values: Tensor, rows: Tensor, count: int, rate: float
) -> tuple[Tensor, RunningMoments]:
    """Let values join some rows, and return the means that these rows had before.

    Args:
        moments: (N,) with N <= count; rows that are missing start empty.
        values: (T,).
        rows: (T,) index of the row that each value joins.
        count: number of rows by now.
        rate: as in `observe`.

    Returns:
        Means (T,) before the values joined, or the value itself where it is the first of its row;
        and the moments (count,) after.
    """
    moments = grown(moments, count)
    full = torch.full_like(moments.mean, torch.nan).index_copy(0, rows, values)
    return torch.where(moments.seen > 0, moments.mean, full)[rows], observe(moments, full, rate)


def clip_factor(
    moments: RunningMoments, norm: Tensor, rate: float
) -> tuple[Tensor, RunningMoments]:
    """Factor in (0, 1] that clips a norm, and the moments that the clipped norm has joined.

    The limit lies two standard deviations above the running mean. Because the moments see the
    clipped norm, an outlier raises the limit only a little. This is z-score clipping (Kumar et
    al., "ZClip", 2025).

    Args:
        moments: moments of the norm.
        norm: the norm now.
        rate: as in `observe`.
    """
    clipped = torch.minimum(norm, moments.limit(2.0))
    factor = torch.where((norm > 0) & norm.isfinite(), clipped / norm, 1.0)
    return factor, observe(moments, torch.where(norm.isfinite(), clipped, torch.nan), rate)


def corrected_for_spike(
    correction: Tensor,
    moments: RunningMoments,
    loss: Tensor,
    *,
    factor: float,
    rate: float,
    recovery: float = 0.05,
) -> tuple[Tensor, RunningMoments]:
    """Multiply `correction` by `factor` if the loss spikes, else let it recover towards 1.

    A spike is a loss that lies both three standard deviations and 5 % above its running mean, or
    is not finite. The correction stays above 0.1. The moments see the loss cut at the limit of a
    spike. Ours: the user's document names the feature without a formula.

    Args:
        correction: correction until now, in (0, 1].
        moments: moments of the loss.
        loss: the loss now.
        factor: factor of one spike.
        rate: as in `observe`.
        recovery: part of the way to 1 that one step without a spike recovers.

    Returns:
        The correction, and the moments that the loss has joined.
    """
    limit = torch.maximum(moments.limit(3.0), moments.mean + 0.05 * moments.mean.abs())
    spike = (loss > limit) | ~loss.isfinite()
    lowered = (correction * factor).clamp_min(min(factor, 0.1))
    recovered = correction + recovery * (1 - correction)
    seen = torch.where(loss.isfinite(), torch.minimum(loss, limit), torch.nan)
    return torch.where(spike, lowered, recovered), observe(moments, seen, rate)
