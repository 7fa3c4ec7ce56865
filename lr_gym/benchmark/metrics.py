"""Statistics over seeds: means with bootstrap intervals, paired differences."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy import stats

__all__ = ["Interval", "mean_interval", "paired_difference"]

LEVEL = 0.95
RESAMPLES = 9999


class Interval(NamedTuple):
    """A mean and its two-sided 95 % interval."""

    mean: float
    low: float
    high: float


def mean_interval(values: Sequence[float], seed: int = 0) -> Interval:
    """Mean over seeds with a bias-corrected and accelerated bootstrap interval (Efron 1987).

    Infinite where a value is; without width where there is one value or all are equal.

    Args:
        values: one per seed.
        seed: of the resampling.
    """
    array = np.asarray(values, dtype=float)
    if array.size == 0:
        raise ValueError("no values: a mean needs at least one seed")
    mean = float(array.mean())
    if not np.isfinite(array).all() or array.size == 1 or np.ptp(array) == 0.0:
        return Interval(mean, mean, mean)
    result = stats.bootstrap(
        (array,),
        np.mean,
        confidence_level=LEVEL,
        n_resamples=RESAMPLES,
        method="BCa",
        rng=np.random.default_rng(seed),
    )
    return Interval(
        mean, float(result.confidence_interval.low), float(result.confidence_interval.high)
    )


def paired_difference(
    values: Sequence[float], baseline: Sequence[float], seed: int = 0
) -> Interval:
    """Mean of values - baseline, seed by seed, with its interval.

    Below 0 is better where lower is better.
    """
    if len(values) != len(baseline):
        raise ValueError(f"pairs need equal seeds; got {len(values)} and {len(baseline)} values")
    with np.errstate(invalid="ignore"):
        difference = np.asarray(values, dtype=float) - np.asarray(baseline, dtype=float)
    return mean_interval(list(difference), seed)
