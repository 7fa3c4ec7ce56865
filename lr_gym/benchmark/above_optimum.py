"""Losses as scores compare them: their distances to the lowest loss that a task can have."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from lr_gym.benchmark.online import is_stream
from lr_gym.tasks import find_task

__all__ = ["BelowOptimumError", "above_optimum"]

ROUNDING = 1e-6  # a loss may be so far below the optimum, relative to its size and to 1


class BelowOptimumError(ValueError):
    """A loss is below the lowest one that its task says is possible, so it has no score."""


def above_optimum(losses: ArrayLike, tasks: Sequence[str]) -> NDArray[np.float64]:
    """Distances (T, S) of losses to the `optimum` of each task, 0 for the tasks of this package.

    A stream's mean loss above its floor may by chance be below 0. It then counts as 0, the best
    that is possible.

    Args:
        losses: (T, S) losses; inf where a training diverged.
        tasks: names of T tasks.

    Raises:
        BelowOptimumError: if a loss on fixed data is below the task's optimum.
    """
    rows = np.asarray(losses, dtype=float)
    distances = np.array([_distances(row, task) for row, task in zip(rows, tasks, strict=True)])
    return distances.reshape(rows.shape)


def _distances(losses: NDArray[np.float64], name: str) -> NDArray[np.float64]:
    """The distances of the losses of one task."""
    if is_stream(name):
        return losses.clip(min=0.0)
    optimum = find_task(name).optimum
    lowest = float(losses.min(initial=np.inf))
    if lowest < optimum - ROUNDING * max(1.0, abs(optimum)):
        raise BelowOptimumError(
            f"task {name!r} ends with a loss of {lowest:.4g}, below its optimum {optimum:g}: set "
            "Task.optimum to a lower bound of the loss"
        )
    return (losses - optimum).clip(min=0.0)
