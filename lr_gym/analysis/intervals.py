"""Means over seeds with bootstrap intervals, and paired differences."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy import stats

__all__ = ["LEVEL", "RESAMPLES", "Interval", "mean_interval", "paired_difference"]

LEVEL = 0.95
RESAMPLES = 9999


class Interval(NamedTuple):
    """A mean and its two-sided 95 % interval."""

    mean: float
    low: float
    high: float


def mean_interval(values: Sequence[float], seed: int = 0) -> Interval:
    """Mean over seeds with a bias-corrected and accelerated bootstrap interval (Efron 1987).

    The mean is infinite where a value is. The interval has no width where there is one value, or
    where all are equal.

    Args:
        values: one value for each seed.
        seed: seed of the resampling.

    Raises:
        ValueError: if there are no values.
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
    low, high = result.confidence_interval
    return Interval(mean, float(low), float(high))


def paired_difference(
    values: Sequence[float], baseline: Sequence[float], seed: int = 0
) -> Interval:
    """Mean of values minus baseline, seed by seed, with its interval.

    Below 0 the values are better where lower is better.

    Args:
        values: one value for each seed.
        baseline: the values to compare with, for the same seeds.
        seed: seed of the resampling.

    Raises:
        ValueError: if the numbers of seeds differ.
    """
    if len(values) != len(baseline):
        raise ValueError(f"pairs need equal seeds; got {len(values)} and {len(baseline)} values")
    with np.errstate(invalid="ignore"):
        difference = np.asarray(values, dtype=float) - np.asarray(baseline, dtype=float)
    return mean_interval(list(difference), seed)
