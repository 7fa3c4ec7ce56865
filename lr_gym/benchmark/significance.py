"""Who is better: paired tests over seeds, corrected for how many pairs are compared."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

__all__ = ["ALPHA", "Comparison", "compare_all", "holm", "paired_test", "winner"]

ALPHA = 0.05  # chance of a single false verdict in a whole table


class Comparison(NamedTuple):
    """A pair.

    Attributes:
        first: name.
        second: name.
        difference: mean over tasks and seeds of how much better the first is, nats; above 0 it is
            better.
        p: of the test alone.
        p_holm: corrected for all pairs of the table.
        better: name of the better one where p_holm is below ALPHA, else "".
    """

    first: str
    second: str
    difference: float
    p: float
    p_holm: float
    better: str


def paired_test(differences: ArrayLike) -> float:
    """Two-sided p-value of mean difference 0, tasks being strata.

    T with Welch and Satterthwaite's degrees of freedom.

    The estimate is the mean over tasks of the mean over seeds; its variance is sum_t s_t^2 / S over
    T^2 (Satterthwaite 1946). One task gives the paired t-test. Differences that are all alike have
    no variance: p is the sign test's. Without two seeds nothing can be said: p is 1.

    Args:
        differences: (T, S), of scores with the same seed.
    """
    array = np.atleast_2d(np.asarray(differences, dtype=float))
    seeds = array.shape[1]
    if seeds < 2:
        return 1.0
    parts = array.var(1, ddof=1) / seeds  # (T,)
    mean, variance = array.mean(1).sum(), parts.sum()
    if variance == 0.0:
        return 1.0 if mean == 0.0 else 2.0 * 0.5**seeds
    freedom = variance**2 / (parts**2 / (seeds - 1)).sum()
    return float(2.0 * stats.t.sf(abs(mean) / np.sqrt(variance), freedom))


def holm(p: Sequence[float]) -> list[float]:
    """Holm's step-down adjustment (1979): adjusted p-values, in the order given."""
    order = np.argsort(p, kind="stable")
    factors = len(p) - np.arange(len(p))
    steps = np.minimum(1.0, np.maximum.accumulate(np.asarray(p, dtype=float)[order] * factors))
    adjusted = np.empty(len(p))
    adjusted[order] = steps
    return [float(value) for value in adjusted]


def compare_all(
    names: Sequence[str], difference_of: Callable[[str, str], NDArray[np.float64]]
) -> list[Comparison]:
    """Every pair of entrants.

    Args:
        names: of the entrants.
        difference_of: (first, second) -> (T, S), how much better the first is with the same seed.
    """
    pairs = list(itertools.combinations(names, 2))
    differences = [difference_of(first, second) for first, second in pairs]
    ps = [paired_test(difference) for difference in differences]
    rows = []
    for (first, second), difference, p, corrected in zip(
        pairs, differences, ps, holm(ps), strict=True
    ):
        mean = float(np.mean(difference))
        better = "" if corrected >= ALPHA else first if mean > 0 else second
        rows.append(Comparison(first, second, mean, p, corrected, better))
    return rows


def winner(comparisons: Sequence[Comparison]) -> str:
    """The entrant that is better than every other one, "" where there is none."""
    names = {name for row in comparisons for name in (row.first, row.second)}
    wins = [row.better for row in comparisons if row.better]
    return next((name for name in sorted(names) if wins.count(name) == len(names) - 1), "")
