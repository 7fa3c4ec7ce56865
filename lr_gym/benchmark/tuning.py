"""Tuning at equal cost: each entrant without a fixed learning rate gets the same number of trials.

A trial is a learning rate of a seeded list, tried on tuning seeds that no reported training uses.
Trials are judged by the selection split. The list depends on the range of learning rates only, and
a shorter list is the beginning of a longer one. So the cells of a trial are the same in every
evaluation, and the store of cells saves everyone from paying twice.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from scipy.stats import qmc

from lr_gym.benchmark.contestants import Entrant
from lr_gym.benchmark.loop import Outcome
from lr_gym.benchmark.run import Cell

__all__ = ["TUNING_SEED", "Trial", "Tuning", "best_trial", "learning_rates", "tuning_cells"]

TUNING_SEED = 1_000_000  # index of the first tuning seed; reported seeds count from 0


class Trial(NamedTuple):
    """A learning rate and what it gave.

    Attributes:
        lr: learning rate, the peak of a schedule.
        loss: mean selection loss over the tuning seeds, inf if a training diverged or raised.
    """

    lr: float
    loss: float


class Tuning(NamedTuple):
    """What tuning an entrant on a task found.

    Attributes:
        lr: learning rate of the best trial.
        trials: all trials, in the order of the list.
    """

    lr: float
    trials: list[Trial]


def learning_rates(space: tuple[float, float], budget: int) -> list[float]:
    """The seeded list of learning rates, log-uniform in a range, rounded to 4 digits.

    It is a scrambled Halton sequence (Owen 2017), which covers the range evenly at every length.

    Args:
        space: (low, high) range.
        budget: how many learning rates.
    """
    points = qmc.Halton(1, scramble=True, rng=0).random(budget)[:, 0]
    low, high = np.log(space)
    return [float(f"{value:.3e}") for value in np.exp(low + (high - low) * points)]


def tuning_cells(
    rows: Sequence[Entrant],
    tasks: Sequence[str],
    *,
    budget: int,
    seeds: int,
    horizon: int | None = None,
) -> dict[tuple[str, str], list[list[Cell]]]:
    """The cells of each trial of each entrant that is tuned, on each task.

    Args:
        rows: entrants; those with a fixed learning rate are passed over.
        tasks: names of tasks.
        budget: trials of each entrant on each task.
        seeds: trainings of a trial.
        horizon: inner steps, None for the tasks' own.

    Returns:
        (task, entrant's name) -> for each trial its cells, one for each seed.
    """

    def trial(row: Entrant, lr: float, task: str) -> list[Cell]:
        return [
            Cell(row.contestant, lr, task, TUNING_SEED + seed, horizon=horizon)
            for seed in range(seeds)
        ]

    return {
        (task, row.name): [trial(row, lr, task) for lr in learning_rates(row.space, budget)]
        for task in tasks
        for row in rows
        if row.lr is None
    }


def best_trial(trials: Sequence[Sequence[Cell]], outcomes: Mapping[Cell, Outcome]) -> Tuning:
    """Choose the trial with the lowest mean selection loss, the first one of several.

    Args:
        trials: for each trial its cells.
        outcomes: the outcomes of all these cells.
    """
    found = [
        Trial(cells[0].lr, float(np.mean([outcomes[cell].selection_loss for cell in cells])))
        for cells in trials
    ]
    return Tuning(min(found, key=lambda trial: trial.loss).lr, found)
