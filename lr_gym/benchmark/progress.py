"""A progress bar over cells whose remaining time knows that tasks cost differently."""

from __future__ import annotations

import collections
from typing import Self

import rich.console
import rich.progress

from lr_gym.benchmark.run import Cell, Outcome

__all__ = ["CellProgress", "remaining"]


def remaining(
    pending: collections.Counter[str], spent: dict[str, list[float]], workers: int
) -> float:
    """Seconds until the pending cells are done.

    Tasks not seen yet count like the mean of the others.

    Args:
        pending: task -> cells to come.
        spent: task -> seconds of each cell that ran.
        workers: processes.
    """
    means = {task: sum(seconds) / len(seconds) for task, seconds in spent.items() if seconds}
    typical = sum(means.values()) / len(means) if means else 0.0
    return sum(count * means.get(task, typical) for task, count in pending.items()) / max(
        1, workers
    )


class CellProgress:
    """The bar; a context manager on the standard error stream."""

    def __init__(self, title: str, cells: list[Cell], workers: int) -> None:
        self._pending = collections.Counter(cell.task for cell in cells)
        self._spent: dict[str, list[float]] = {}
        self._workers = workers
        self._bar = rich.progress.Progress(
            *("[progress.description]{task.description}", rich.progress.BarColumn()),
            *(
                rich.progress.MofNCompleteColumn(),
                rich.progress.TimeElapsedColumn(),
                "{task.fields[left]}",
            ),
            console=rich.console.Console(stderr=True),
        )
        self._line = self._bar.add_task(title, total=len(cells), left="")

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def __call__(self, cell: Cell, outcome: Outcome) -> None:
        """Count a cell."""
        self._pending[cell.task] -= 1
        self._spent.setdefault(cell.task, []).append(outcome.seconds)
        minutes = remaining(self._pending, self._spent, self._workers) / 60.0
        self._bar.update(self._line, advance=1, left=f"about {minutes:.1f} min left")
