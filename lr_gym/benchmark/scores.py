"""Figures across tasks.

Normalised scores, interquartile mean, probability of improvement, performance profiles.

After Agarwal et al., "Deep reinforcement learning at the edge of the statistical precipice"
(NeurIPS 2021). Scores have shape (T, S): tasks, seeds; losses likewise, inf where a training
diverged.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

from lr_gym.benchmark.metrics import LEVEL, RESAMPLES, Interval

__all__ = [
    "BOUND",
    "iqm",
    "iqm_interval",
    "performance_profile",
    "probability_of_improvement",
    "relative_loss",
    "scores",
]

Array = NDArray[np.float64]
BOUND = float(np.log(1000.0))  # nats; a diverged training scores -BOUND
OFFSET = 1e-8  # added to both losses: the score stays finite at a known optimum of 0


def scores(losses: ArrayLike, reference: ArrayLike) -> Array:
    """How much lower than the reference a loss is.

    Log of the ratio, seed by seed, in nats within +-BOUND.

    0.1 is a loss about 10 % lower than the reference's with the same initial weights and
    minibatches. Both diverged is 0. Ours, because a difference of losses means nothing across
    tasks, and a scale from random to best lacks a best.

    Args:
        losses: (T, S).
        reference: (T, S), of the entrant that the scores are relative to.

    Returns:
        (T, S).
    """
    mine, other = (np.asarray(array, dtype=float) + OFFSET for array in (losses, reference))
    with np.errstate(invalid="ignore", divide="ignore"):
        ratio = np.log(other) - np.log(mine)
    bounded: Array = np.clip(
        np.nan_to_num(ratio, nan=0.0, posinf=BOUND, neginf=-BOUND), -BOUND, BOUND
    )
    return bounded


def iqm(values: ArrayLike) -> float:
    """Interquartile mean of all tasks and seeds: the mean of the middle half."""
    return float(stats.trim_mean(np.asarray(values, dtype=float), 0.25, axis=None))


def relative_loss(losses: ArrayLike, before: ArrayLike) -> float:
    """By what factor losses stand to each task's median loss before.

    The ranking's statistic, back from the logarithm.

    Args:
        losses: (T, S).
        before: (T, S') without what is judged, as without learning or without a policy.
    """
    mine = np.asarray(losses, dtype=float)
    middle = np.median(np.asarray(before, dtype=float), axis=1, keepdims=True)
    return float(np.exp(-iqm(scores(mine, np.broadcast_to(middle, mine.shape)))))


def _stratified(values: Array, statistic: Any, seed: int, resamples: int) -> tuple[float, float]:
    """Percentile bootstrap interval of statistic(*rows, axis), seeds resampled within each row (T, S).

    The spread of resampled means is too small by sqrt((S - 1) / S), since resamples vary about the sample's own mean;
    the interval is widened by that factor about the estimate (Hesterberg 2015, section 4.1), but not beyond the values.
    """
    if values.shape[1] < 2 or np.ptp(values, axis=1).max() == 0.0:
        point = float(statistic(*values, axis=-1))
        return point, point
    result = stats.bootstrap(
        tuple(values),
        statistic,
        confidence_level=LEVEL,
        n_resamples=resamples,
        method="percentile",
        batch=2000,
        rng=np.random.default_rng(seed),
    )
    point = float(statistic(*values, axis=-1))
    widen = np.sqrt(values.shape[1] / (values.shape[1] - 1))
    ends = point + widen * (np.array(result.confidence_interval) - point)
    low, high = ends.clip(min(point, values.min()), max(point, values.max()))
    return float(low), float(high)


def iqm_interval(values: ArrayLike, seed: int = 0, resamples: int = RESAMPLES) -> Interval:
    """Interquartile mean of scores (T, S) and its stratified bootstrap 95 % interval."""
    array = np.atleast_2d(np.asarray(values, dtype=float))

    def statistic(*tasks: Array, axis: int) -> Array:
        pooled: Array = stats.trim_mean(
            np.concatenate(np.broadcast_arrays(*tasks), axis=axis), 0.25, axis=axis
        )
        return pooled

    return Interval(iqm(array), *_stratified(array, statistic, seed, resamples))


def probability_of_improvement(losses: ArrayLike, other: ArrayLike) -> Interval:
    """How often the first loses less than the second with the same seed, mean over tasks (T, S).

    Ties count half.

    Agarwal et al. compare all pairs of runs; runs that share weights and minibatches are compared
    with their own twin. The interval is Wilson's (1927) over all pairs: a bootstrap of ten wins in
    ten would claim certainty.
    """
    mine, theirs = (np.atleast_2d(np.asarray(array, dtype=float)) for array in (losses, other))
    wins = (mine < theirs) + 0.5 * (mine == theirs)
    p, n, z = float(wins.mean()), wins.size, float(stats.norm.ppf(0.5 + LEVEL / 2.0))
    centre, half = p + z**2 / (2 * n), z * float(np.sqrt(p * (1.0 - p) / n + z**2 / (4 * n**2)))
    return Interval(
        p,
        max(0.0, (centre - half) / (1.0 + z**2 / n)),
        min(1.0, (centre + half) / (1.0 + z**2 / n)),
    )


def performance_profile(values: ArrayLike, thresholds: ArrayLike) -> Array:
    """Fraction of all trainings whose score is at least each threshold, mean over tasks.

    Args:
        values: scores (T, S).
        thresholds: (K,).

    Returns:
        (K,), falling.
    """
    array, at = np.asarray(values, dtype=float), np.asarray(thresholds, dtype=float)
    fractions: Array = (array[:, :, None] >= at).mean((0, 1))
    return fractions
