"""A progress bar over cells that knows that tasks take different times."""

from __future__ import annotations

import collections
from collections.abc import Sequence
from typing import Self

import rich.console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeElapsedColumn

from lr_gym.benchmark.loop import Outcome
from lr_gym.benchmark.run import Cell

__all__ = ["CellProgress", "remaining"]


def remaining(
    pending: collections.Counter[str], spent: dict[str, list[float]], workers: int
) -> float:
    """Seconds until the pending cells are done.

    A task of which no cell has run counts like the mean of the others.

    Args:
        pending: task -> number of cells to come.
        spent: task -> seconds of each cell that has run.
        workers: number of processes.
    """
    means = {task: sum(seconds) / len(seconds) for task, seconds in spent.items() if seconds}
    typical = sum(means.values()) / len(means) if means else 0.0
    total = sum(count * means.get(task, typical) for task, count in pending.items())
    return total / max(1, workers)


class CellProgress:
    """The bar: a context manager that writes to the standard error stream."""

    def __init__(self, title: str, cells: Sequence[Cell], workers: int) -> None:
        """Count the cells.

        Args:
            title: word before the bar.
            cells: distinct cells to come.
            workers: number of processes.
        """
        self._pending = collections.Counter(cell.task for cell in cells)
        self._spent: dict[str, list[float]] = {}
        self._workers = workers
        self._bar = Progress(
            "[progress.description]{task.description}",
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            "{task.fields[left]}",
            console=rich.console.Console(stderr=True),
        )
        self._line = self._bar.add_task(title, total=len(cells), left="")

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def __call__(self, cell: Cell, outcome: Outcome) -> None:
        """Count a finished cell."""
        self._pending[cell.task] -= 1
        self._spent.setdefault(cell.task, []).append(outcome.seconds)
        minutes = remaining(self._pending, self._spent, self._workers) / 60.0
        self._bar.update(self._line, advance=1, left=f"about {minutes:.1f} min left")
