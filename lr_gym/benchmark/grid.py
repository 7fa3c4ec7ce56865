"""Which tasks an evaluation runs on, and which cells it reports."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from lr_gym.benchmark.contestants import Entrant
from lr_gym.benchmark.run import Cell
from lr_gym.tasks import SUITES, Task, find_task

__all__ = [
    "MISSET",
    "Grid",
    "Rates",
    "misset_cells",
    "named_tasks",
    "reported_cells",
    "suite_tasks",
]

MISSET = (0.01, 0.1, 1.0, 10.0, 100.0)  # factors on an entrant's learning rate

Rates = Mapping[tuple[str, str], float]  # (task, entrant's name) -> learning rate
Grid = Mapping[tuple[str, str], Sequence[Cell]]  # (task, entrant's name) -> a cell for each seed


def _obstacle(task: Task) -> str | None:
    """Why a task cannot run here, None where it can; its data are prepared on the way."""
    try:
        task.data()
    except (ImportError, OSError) as error:
        return str(error)
    return None


def named_tasks(names: Sequence[str]) -> list[str]:
    """Check tasks that are asked for by name, whatever they cost, and return their names.

    Raises:
        ValueError: if a name is unknown or repeated, or if data or packages of a task are missing.
    """
    if repeated := sorted({name for name in names if names.count(name) > 1}):
        raise ValueError(f"task {', '.join(map(repr, repeated))} is asked for twice")
    for name in names:
        reason = _obstacle(find_task(name))
        if reason is not None:
            raise ValueError(f"task {name!r} cannot run here: {reason}")
    return list(names)


def suite_tasks(suite: str) -> tuple[list[str], dict[str, str]]:
    """Tasks of a suite that can run on this machine, and for each other one why it cannot.

    Raises:
        ValueError: if the suite is unknown, or if none of its tasks can run.
    """
    if suite not in SUITES:
        raise ValueError(f"unknown suite {suite!r}; choose from {', '.join(SUITES)}")
    skipped: dict[str, str] = {}
    for name in SUITES[suite]:
        task = find_task(name)
        if task.device == "cuda" and not torch.cuda.is_available():
            skipped[name] = (
                f"trains for hours on a CPU and no GPU is here; run it anyway with --task {name}"
            )
            continue
        reason = _obstacle(task)
        if reason is not None:
            skipped[name] = reason
    tasks = [name for name in SUITES[suite] if name not in skipped]
    if not tasks:
        raise ValueError(f"no task of suite {suite!r} can run here: {skipped}")
    return tasks, skipped


def reported_cells(
    rows: Sequence[Entrant],
    tasks: Sequence[str],
    lrs: Rates,
    seeds: int,
    horizon: int | None,
    factor: float = 1.0,
) -> Grid:
    """The cells on the test split, one for each seed.

    Args:
        rows: entrants.
        tasks: names of tasks.
        lrs: learning rate of each entrant on each task.
        seeds: trainings of each entrant on each task.
        horizon: inner steps, None for the tasks' own.
        factor: factor on every learning rate.
    """

    def cell(row: Entrant, task: str, seed: int) -> Cell:
        lr = lrs[task, row.name] * factor
        return Cell(row.contestant, lr, task, seed, test=True, horizon=horizon)

    return {
        (task, row.name): [cell(row, task, seed) for seed in range(seeds)]
        for task in tasks
        for row in rows
    }


def misset_cells(
    rows: Sequence[Entrant], tasks: Sequence[str], lrs: Rates, seeds: int, horizon: int | None
) -> dict[float, Grid]:
    """`reported_cells` at every factor of MISSET."""
    return {factor: reported_cells(rows, tasks, lrs, seeds, horizon, factor) for factor in MISSET}
