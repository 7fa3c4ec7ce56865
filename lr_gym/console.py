"""Tables and progress for terminals and for logs.

A log, such as that of continuous integration, has no width to fit and cannot draw a bar. So tables
are printed at their own width there, and progress is a line now and then.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, TextIO, TypeVar

from lr_gym.optional import require

if TYPE_CHECKING:
    import rich.table

__all__ = ["INTERVAL", "Pace", "can_draw", "duration", "print_whole", "track"]

Item = TypeVar("Item")

INTERVAL = 30.0  # seconds between two lines of progress in a log


def can_draw(stream: TextIO) -> bool:
    """Whether a bar can be drawn: on a terminal, unless it cannot move its cursor."""
    return stream.isatty() and os.environ.get("TERM") != "dumb"


def duration(seconds: float) -> str:
    """Seconds, or minutes where there are many.

    >>> duration(59.0), duration(150.0)
    ('59 s', '2.5 min')
    """
    return f"{seconds:.0f} s" if seconds < 100.0 else f"{seconds / 60.0:.1f} min"


def print_whole(table: rich.table.Table) -> None:
    """Print a table at its own width, since rich would break names to fit 80 columns."""
    console = require("rich.console", "benchmark").Console()
    measure = require("rich.measure", "benchmark").Measurement.get
    needed = measure(console, console.options.update(width=1000), table).maximum
    console.width = max(console.width, needed)
    console.print(table)


class Pace:
    """Says whether a line of progress is due: at first, at the end, and now and then between."""

    def __init__(
        self,
        stream: TextIO,
        interval: float = INTERVAL,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Look at the stream.

        Args:
            stream: where the lines go. On a terminal every line is due.
            interval: seconds between two lines elsewhere.
            clock: tells the time in seconds.
        """
        self._interval = 0.0 if can_draw(stream) else interval
        self._clock = clock
        self._next = clock()

    def due(self, *, last: bool = False) -> bool:
        """Whether a line is due now; the last one always is."""
        now = self._clock()
        if not last and now < self._next:
            return False
        self._next = now + self._interval
        return True


def track(items: Iterable[Item], total: int, title: str = "done") -> Iterator[Item]:
    """The items one after the other, with progress on the standard error stream.

    Args:
        items: what is gone through.
        total: number of items.
        title: words before the progress.
    """
    if can_draw(sys.stderr):
        console = require("rich.console", "benchmark").Console(stderr=True)
        bar = require("rich.progress", "benchmark").track
        yield from bar(items, title, total, console=console, disable=total == 0)
        return
    pace = Pace(sys.stderr)
    start = time.monotonic()
    for number, item in enumerate(items, 1):
        yield item
        if pace.due(last=number == total):
            spent = duration(time.monotonic() - start)
            print(f"{title} {number}/{total}  {spent}", file=sys.stderr, flush=True)
