"""Progress over cells that knows that tasks take different times: a bar, or lines in a log."""

from __future__ import annotations

import collections
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Self

import rich.console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeElapsedColumn

from lr_gym.benchmark.loop import Outcome
from lr_gym.benchmark.run import Cell
from lr_gym.benchmark.store import complete
from lr_gym.console import Pace, can_draw, duration
from lr_gym.engine import Engine

__all__ = ["CellProgress", "remaining", "run_cells"]


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
    """A context manager that writes to the standard error stream: a bar, or a line now and then."""

    def __init__(
        self,
        title: str,
        cells: Sequence[Cell],
        workers: int,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Count the cells.

        Args:
            title: word before the progress.
            cells: distinct cells to come.
            workers: number of processes.
            clock: tells the time in seconds.
        """
        self._title = title
        self._pending = collections.Counter(cell.task for cell in cells)
        self._spent: dict[str, list[float]] = {}
        self._total = len(cells)
        self._workers = workers
        self._clock = clock
        self._start = clock()
        self._pace = Pace(sys.stderr, clock=clock)
        self._bar = _bar() if can_draw(sys.stderr) else None
        if self._bar is not None:
            self._bar.add_task(title, total=len(cells), left="")

    def __enter__(self) -> Self:
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.stop()

    def __call__(self, cell: Cell, outcome: Outcome) -> None:
        """Count a finished cell."""
        self._pending[cell.task] -= 1
        self._spent.setdefault(cell.task, []).append(outcome.seconds)
        seconds = remaining(self._pending, self._spent, self._workers)
        left = f"about {seconds / 60.0:.1f} min left"
        if self._bar is not None:
            self._bar.update(self._bar.task_ids[0], advance=1, left=left)
            return
        done = self._total - self._pending.total()
        if self._pace.due(last=done == self._total):
            spent = duration(self._clock() - self._start)
            line = f"{self._title} {done}/{self._total}  {spent}  {left}"
            print(line, file=sys.stderr, flush=True)


def _bar() -> Progress:
    """A bar on the standard error stream with the field `left`."""
    return Progress(
        "[progress.description]{task.description}",
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        "{task.fields[left]}",
        console=rich.console.Console(stderr=True),
    )


def run_cells(
    title: str, cells: Iterable[Cell], engine: Engine, workers: int
) -> dict[Cell, Outcome]:
    """Outcomes of cells, with progress; only those that are not in the store run.

    Args:
        title: word before the progress.
        cells: cells whose outcomes are wanted; repeated ones run once.
        engine: runs the missing cells.
        workers: number of processes, by which the progress reckons the time that is left.
    """
    distinct = list(dict.fromkeys(cells))
    with CellProgress(title, distinct, workers) as progress:
        outcomes = complete(distinct, engine, progress)
    return {cell: outcomes[cell] for cell in distinct}
