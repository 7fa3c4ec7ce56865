"""Which tasks an evaluation runs on, and which cells it consists of."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from lr_gym.benchmark.contestants import Entrant
from lr_gym.benchmark.run import Cell
from lr_gym.tasks import SUITES, Task, find_task

__all__ = ["MISSET", "misset_cells", "named_tasks", "reported_cells", "suite_tasks"]

MISSET = (0.01, 0.1, 1.0, 10.0, 100.0)  # factors on an entrant's learning rate


def _obstacle(task: Task) -> str:
    """Why a task cannot run here, "" where it can; its data are prepared on the way."""
    try:
        task.data()
    except (ImportError, OSError) as error:
        return str(error)
    return ""


def named_tasks(names: Sequence[str]) -> list[str]:
    """Tasks asked for by name, whatever they cost.

    Raises:
        ValueError: for an unknown or repeated name, and where data or packages of a task are not
            there.
    """
    if repeated := sorted({name for name in names if names.count(name) > 1}):
        raise ValueError(f"task {', '.join(map(repr, repeated))} is asked for twice")
    for name in names:
        if reason := _obstacle(find_task(name)):
            raise ValueError(f"task {name!r} cannot run here: {reason}")
    return list(names)


def suite_tasks(suite: str) -> tuple[list[str], dict[str, str]]:
    """Tasks of a suite that can run on this machine, and why the others cannot.

    Raises:
        ValueError: for an unknown suite, or where none of its tasks can run.
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
        elif reason := _obstacle(task):
            skipped[name] = reason
    tasks = [name for name in SUITES[suite] if name not in skipped]
    if not tasks:
        raise ValueError(f"no task of suite {suite!r} can run here: {skipped}")
    return tasks, skipped


Rates = Mapping[tuple[str, str], float]  # (task, entrant's name) -> learning rate


def reported_cells(
    rows: Sequence[Entrant],
    tasks: Sequence[str],
    lrs: Rates,
    seeds: int,
    horizon: int | None,
    factor: float = 1.0,
) -> dict[tuple[str, str], list[Cell]]:
    """(task, entrant's name) -> its cells on the test split, one per seed, at `factor` times its learning rate."""
    return {
        (task, row.name): [
            Cell(row.at(lrs[task, row.name] * factor), task, seed, test=True, horizon=horizon)
            for seed in range(seeds)
        ]
        for task in tasks
        for row in rows
    }


def misset_cells(
    rows: Sequence[Entrant], tasks: Sequence[str], lrs: Rates, seeds: int, horizon: int | None
) -> dict[float, dict[tuple[str, str], list[Cell]]]:
    """`reported_cells` at every factor of MISSET."""
    return {factor: reported_cells(rows, tasks, lrs, seeds, horizon, factor) for factor in MISSET}
