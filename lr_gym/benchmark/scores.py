"""Figures across tasks: scores, interquartile mean, probability of improvement, profiles.

After Agarwal et al., "Deep reinforcement learning at the edge of the statistical precipice"
(NeurIPS 2021). Scores and losses have shape (T, S): T tasks, S seeds. A loss is inf where the
training diverged.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

from lr_gym.analysis.intervals import LEVEL, RESAMPLES, Interval

__all__ = [
    "BOUND",
    "SCORE_SCALE",
    "iqm",
    "iqm_interval",
    "performance_profile",
    "probability_of_improvement",
    "relative_loss",
    "scores",
]

Array = NDArray[np.float64]
BOUND = float(np.log(1000.0))  # nats; a diverged training scores -BOUND
SCORE_SCALE = "0.1 is a loss about 10 % lower, 0.7 half the loss, 2.3 a tenth of it"
OFFSET = 1e-8  # added to both losses: the score stays finite at a known optimum of 0


def scores(losses: ArrayLike, reference: ArrayLike) -> Array:
    """How much lower than the reference a loss is: the log of their ratio, in nats within +-BOUND.

    A score of 0.1 is a loss about 10 % lower than the reference's with the same initial weights and
    minibatches. Where both diverged the score is 0. The score is ours: a difference of losses means
    nothing across tasks, and for a scale from random to best no best is known.

    Args:
        losses: (T, S) losses, measured from the lowest one possible: see `above_optimum`.
        reference: (T, S) losses of the entrant that the scores are relative to.

    Returns:
        (T, S) scores.

    Raises:
        ValueError: if a loss is below 0, which has no logarithm.
    """
    mine, other = (np.asarray(array, dtype=float) for array in (losses, reference))
    lowest = min(mine.min(initial=np.inf), other.min(initial=np.inf))
    if lowest < 0.0:
        raise ValueError(
            f"scores need losses of at least 0; got {lowest:.4g}: measure them from the lowest "
            "loss that is possible, as above_optimum does"
        )
    with np.errstate(invalid="ignore", divide="ignore"):
        ratio = np.log(other + OFFSET) - np.log(mine + OFFSET)
    bounded: Array = np.clip(
        np.nan_to_num(ratio, nan=0.0, posinf=BOUND, neginf=-BOUND), -BOUND, BOUND
    )
    return bounded


def iqm(values: ArrayLike) -> float:
    """Interquartile mean of all tasks and seeds: the mean of the middle half."""
    return float(stats.trim_mean(np.asarray(values, dtype=float), 0.25, axis=None))


def relative_loss(losses: ArrayLike, before: ArrayLike) -> float:
    """The factor between losses and each task's median loss before.

    This is the statistic of the ranking, turned back from the logarithm.

    Args:
        losses: (T, S) losses, as for `scores`.
        before: (T, S') losses without what is judged, for example without a policy.
    """
    mine = np.asarray(losses, dtype=float)
    middle = np.median(np.asarray(before, dtype=float), axis=1, keepdims=True)
    return float(np.exp(-iqm(scores(mine, np.broadcast_to(middle, mine.shape)))))


def _stratified(values: Array, statistic: Any, seed: int, resamples: int) -> tuple[float, float]:
    """Percentile bootstrap interval of a statistic; seeds are resampled within each task.

    Resampled means spread too little, by the factor sqrt((S - 1) / S), because resamples vary about
    the sample's own mean. The interval is widened by that factor about the estimate (Hesterberg
    2015, section 4.1), but not beyond the values.

    Args:
        values: (T, S) scores.
        statistic: function of (*rows, axis).
        seed: seed of the resampling.
        resamples: number of resamples.
    """
    point = float(statistic(*values, axis=-1))
    if values.shape[1] < 2 or np.ptp(values, axis=1).max() == 0.0:
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
    widen = np.sqrt(values.shape[1] / (values.shape[1] - 1))
    ends = point + widen * (np.array(result.confidence_interval) - point)
    low, high = ends.clip(min(point, values.min()), max(point, values.max()))
    return float(low), float(high)


def iqm_interval(values: ArrayLike, seed: int = 0, resamples: int = RESAMPLES) -> Interval:
    """Interquartile mean of scores and its stratified bootstrap 95 % interval.

    Args:
        values: (T, S) scores.
        seed: seed of the resampling.
        resamples: number of resamples.
    """
    array = np.atleast_2d(np.asarray(values, dtype=float))

    def statistic(*tasks: Array, axis: int) -> Array:
        everything = np.concatenate(np.broadcast_arrays(*tasks), axis=axis)
        pooled: Array = stats.trim_mean(everything, 0.25, axis=axis)
        return pooled

    return Interval(iqm(array), *_stratified(array, statistic, seed, resamples))


def probability_of_improvement(losses: ArrayLike, other: ArrayLike) -> Interval:
    """How often the first loses less than the second with the same seed, mean over tasks.

    Ties count half. Agarwal et al. compare all pairs of runs; here runs share weights and
    minibatches, so each is compared with its twin. The interval is Wilson's (1927) over all pairs:
    a bootstrap of ten wins in ten would claim certainty.

    Args:
        losses: (T, S) losses of the first.
        other: (T, S) losses of the second.
    """
    mine, theirs = (np.atleast_2d(np.asarray(array, dtype=float)) for array in (losses, other))
    wins = (mine < theirs) + 0.5 * (mine == theirs)
    p = float(wins.mean())
    n = wins.size
    z = float(stats.norm.ppf(0.5 + LEVEL / 2.0))
    centre = p + z**2 / (2 * n)
    half = z * float(np.sqrt(p * (1.0 - p) / n + z**2 / (4 * n**2)))
    scale = 1.0 + z**2 / n
    return Interval(p, max(0.0, (centre - half) / scale), min(1.0, (centre + half) / scale))


def performance_profile(values: ArrayLike, thresholds: ArrayLike) -> Array:
    """Fraction of all trainings whose score is at least each threshold, mean over tasks.

    Args:
        values: (T, S) scores.
        thresholds: (K,) scores.

    Returns:
        (K,) fractions, falling where the thresholds rise.
    """
    array = np.asarray(values, dtype=float)
    at = np.asarray(thresholds, dtype=float)
    fractions: Array = (array[:, :, None] >= at).mean((0, 1))
    return fractions
