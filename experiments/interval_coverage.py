"""Do the benchmark's intervals and verdicts hold what they promise, on results with a known truth?

    python -m experiments.interval_coverage --draws 1000

Coverage is how often the 95 % interval of the interquartile mean contains the true one. False
verdicts are counted among nine equal contestants: how often any pair of them is called different,
with and without Holm's correction.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np
import tyro
from numpy.typing import NDArray
from scipy import stats

from lr_gym.benchmark.scores import iqm, iqm_interval
from lr_gym.benchmark.significance import ALPHA, compare_all

Array = NDArray[np.float64]


def normal(generator: np.random.Generator, seeds: int, tasks: int) -> Array:
    """Tasks of different means and spreads."""
    at = np.arange(tasks)[:, None]
    return generator.normal(0.1 * at, 0.05 + 0.05 * at, (tasks, seeds))


def skewed(generator: np.random.Generator, seeds: int, tasks: int) -> Array:
    """Scores with a long tail to one side, as of losses with log-normal noise."""
    at = np.arange(tasks)[:, None]
    return 0.1 * at - 0.2 * generator.lognormal(0.0, 0.7, (tasks, seeds))


def diverging(generator: np.random.Generator, seeds: int, tasks: int) -> Array:
    """Normal scores of which one in ten is a divergence."""
    scores = normal(generator, seeds, tasks)
    return np.where(generator.random(scores.shape) < 0.1, -6.9, scores)


SHAPES: dict[str, Callable[[np.random.Generator, int, int], Array]] = {
    "normal": normal,
    "skewed": skewed,
    "diverging": diverging,
}


def coverage(
    shape: str, draws: int, tasks: int, seeds: int, resamples: int, seed: int = 0
) -> float:
    """Fraction of draws whose interval contains the true interquartile mean."""
    generator = np.random.default_rng(seed)
    truth = iqm(SHAPES[shape](generator, 200_000, tasks))
    hits = 0
    for draw in range(draws):
        _, low, high = iqm_interval(
            SHAPES[shape](generator, seeds, tasks), seed=draw, resamples=resamples
        )
        hits += low <= truth <= high
    return hits / draws


def false_verdicts(
    shape: str, draws: int, tasks: int, seeds: int, contestants: int = 9, seed: int = 0
) -> tuple[float, float]:
    """Fractions of draws with any verdict among equals, with and without correction.

    Half of the noise is shared by all contestants, as that of common seeds is.
    """
    generator = np.random.default_rng(seed)
    corrected = 0
    alone = 0
    for _ in range(draws):
        shared = SHAPES[shape](generator, seeds, tasks)
        rows = {
            str(i): 0.5 * shared + 0.5 * SHAPES[shape](generator, seeds, tasks)
            for i in range(contestants)
        }

        def difference(
            first: str,
            second: str,
            rows: dict[str, Array] = rows,  # this draw's
        ) -> Array:
            return rows[first] - rows[second]

        pairs = compare_all(list(rows), difference)
        corrected += any(pair.better for pair in pairs)
        alone += any(pair.p < ALPHA for pair in pairs)
    return corrected / draws, alone / draws


@dataclasses.dataclass(frozen=True)
class Args:
    """Coverage of the intervals, and false verdicts, on synthetic results."""

    draws: int = 1000
    """Synthetic results drawn for each kind of scores."""
    tasks: int = 8
    """Tasks of each result."""
    seeds: int = 10
    """Seeds of each task."""
    resamples: int = 2000
    """Resamples of the bootstrap."""


def main(args: Args) -> None:
    print(
        "| scores | coverage of the 95 % interval | its 95 % interval | false verdict, Holm | "
        "uncorrected |"
    )
    print("|---|---|---|---|---|")
    for shape in SHAPES:
        covered = coverage(shape, args.draws, args.tasks, args.seeds, args.resamples)
        low, high = stats.binomtest(round(covered * args.draws), args.draws).proportion_ci()
        corrected, alone = false_verdicts(shape, args.draws, args.tasks, args.seeds)
        print(
            f"| {shape} | {covered:.3f} | {low:.3f} to {high:.3f} | {corrected:.3f} | {alone:.3f} "
            "|",
            flush=True,
        )


if __name__ == "__main__":
    main(tyro.cli(Args))
