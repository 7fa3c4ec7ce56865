"""Who is better: paired tests over seeds, corrected for the number of pairs that are compared."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

__all__ = ["ALPHA", "Comparison", "compare_all", "holm", "paired_test", "smallest_shown", "winner"]

ALPHA = 0.05  # highest chance of a single false verdict in a whole table


class Comparison(NamedTuple):
    """The comparison of two entrants.

    Attributes:
        first: name of the first entrant.
        second: name of the second entrant.
        difference: mean over tasks and seeds of how much better the first is, in nats; above 0 the
            first is better.
        p: p-value of this test alone.
        p_holm: p-value corrected for all pairs of the table.
        better: name of the better one where p_holm is below ALPHA, else None.
    """

    first: str
    second: str
    difference: float
    p: float
    p_holm: float
    better: str | None


def paired_test(differences: ArrayLike) -> float:
    """Two-sided p-value of the hypothesis that the mean difference is 0; tasks are strata.

    The test is a t-test with the degrees of freedom of Welch and Satterthwaite. The estimate is the
    mean over tasks of the mean over seeds, and its variance is sum_t s_t^2 / S over T^2
    (Satterthwaite 1946). With one task it is the paired t-test. Where all differences are equal
    there is no variance, and p is that of the sign test. With a single seed nothing can be said,
    and p is 1.

    Args:
        differences: (T, S) differences between scores with the same seed.
    """
    array = np.atleast_2d(np.asarray(differences, dtype=float))
    seeds = array.shape[1]
    if seeds < 2:
        return 1.0
    mean = array.mean(1).sum()
    variance, freedom = _variance(array)
    if variance == 0.0:
        return 1.0 if mean == 0.0 else 2.0 * 0.5**seeds
    return float(2.0 * stats.t.sf(abs(mean) / np.sqrt(variance), freedom))


def _variance(differences: NDArray[np.float64]) -> tuple[float, float]:
    """Variance of the sum over tasks of the means over seeds, and its degrees of freedom."""
    seeds = differences.shape[1]
    parts = differences.var(1, ddof=1) / seeds  # (T,)
    variance = parts.sum()
    if variance == 0.0:
        return 0.0, np.inf
    return variance, variance**2 / (parts**2 / (seeds - 1)).sum()


def smallest_shown(differences: ArrayLike, pairs: int) -> float | None:
    """The smallest mean difference that `paired_test` would have shown at this spread over seeds.

    Args:
        differences: (T, S) differences between scores with the same seed.
        pairs: number of pairs of the table. The correction is that of the smallest p-value, which
            Holm multiplies by this number.

    Returns:
        The difference in nats, or None where the spread is unknown (one seed) or 0.
    """
    array = np.atleast_2d(np.asarray(differences, dtype=float))
    if array.shape[1] < 2:
        return None
    variance, freedom = _variance(array)
    if variance == 0.0:
        return None
    return float(stats.t.isf(ALPHA / (2 * pairs), freedom) * np.sqrt(variance) / len(array))


def holm(p: Sequence[float]) -> list[float]:
    """P-values adjusted by Holm's step-down method (1979), in the order given."""
    order = np.argsort(p, kind="stable")
    factors = len(p) - np.arange(len(p))  # the smallest p-value is multiplied by the largest factor
    scaled = np.asarray(p, dtype=float)[order] * factors
    adjusted = np.empty(len(p))
    adjusted[order] = np.minimum(1.0, np.maximum.accumulate(scaled))
    return [float(value) for value in adjusted]


def compare_all(
    names: Sequence[str], difference_of: Callable[[str, str], NDArray[np.float64]]
) -> list[Comparison]:
    """Compare every pair of entrants.

    Args:
        names: names of the entrants.
        difference_of: function of the names of two entrants that returns (T, S) how much better the
            first is with the same seed.
    """
    pairs = list(itertools.combinations(names, 2))
    differences = [difference_of(first, second) for first, second in pairs]
    ps = [paired_test(difference) for difference in differences]
    rows = []
    for (first, second), difference, p, corrected in zip(
        pairs, differences, ps, holm(ps), strict=True
    ):
        mean = float(np.mean(difference))
        leader = first if mean > 0 else second
        better = leader if corrected < ALPHA else None
        rows.append(Comparison(first, second, mean, p, corrected, better))
    return rows


def winner(comparisons: Sequence[Comparison]) -> str | None:
    """The entrant that is better than every other one, None where there is none."""
    names = {name for row in comparisons for name in (row.first, row.second)}
    wins = [row.better for row in comparisons]
    return next((name for name in sorted(names) if wins.count(name) == len(names) - 1), None)
