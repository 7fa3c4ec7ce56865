"""Cells: the trainings that an evaluation consists of, each a pure function of its fields."""

from __future__ import annotations

import math
import time
import warnings
from typing import NamedTuple

from lr_gym.benchmark.contestants import Contestant, recipe_of
from lr_gym.benchmark.loop import Outcome, train
from lr_gym.tasks import find_task

__all__ = ["Cell", "attempt", "run_cell"]


class Cell(NamedTuple):
    """One training.

    Attributes:
        contestant: who trains.
        lr: learning rate; the peak of a schedule, or the initial one of a policy.
        task: name of a task.
        seed: index of the evaluation seed.
        test: whether the test split is looked at; on a stream, whether curve and metrics are.
        horizon: inner steps, None for the task's own.
    """

    contestant: Contestant
    lr: float
    task: str
    seed: int
    test: bool = False
    horizon: int | None = None


def run_cell(cell: Cell) -> Outcome:
    """Run the training of a cell.

    Raises:
        Exception: whatever the task's data or the optimizer raise; `attempt` turns it into an
            outcome.
    """
    return train(
        recipe_of(cell.contestant),
        cell.lr,
        find_task(cell.task),
        cell.seed,
        test=cell.test,
        horizon=cell.horizon,
    )


def attempt(cell: Cell) -> Outcome:
    """Run a cell; an exception becomes an outcome, so that it does not stop the other cells.

    The warning that a policy's guard acts is left out, because `Outcome.guarded` says it.
    """
    begin = time.perf_counter()
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings(
                "ignore", "PolicyOptimizer: the policy has learned from nothing like", UserWarning
            )
            return run_cell(cell)
    except Exception as error:
        return Outcome(
            math.inf,
            math.inf,
            {},
            [],
            [],
            [],
            [],
            seconds=time.perf_counter() - begin,
            error=f"{type(error).__name__}: {error}",
        )
