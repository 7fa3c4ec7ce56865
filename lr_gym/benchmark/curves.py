"""Figures of a training's curve.

They are the area under it, the updates until it reaches a target, and how much sooner it gets to a
loss than another curve.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy.integrate import trapezoid

__all__ = ["area_under_curve", "speed_up", "steps_to_target"]


def area_under_curve(steps: Sequence[int], losses: Sequence[float]) -> float:
    """Mean loss along a training by the trapezoidal rule, inf where the training diverged.

    Args:
        steps: numbers of updates, from 0 to the horizon, after which the loss was read.
        losses: loss after each of them; fewer where the training ended early.
    """
    if len(losses) < len(steps) or not steps or steps[-1] == steps[0]:
        return float("inf")
    if not np.isfinite(losses).all():
        return float("inf")
    return float(trapezoid(losses, steps) / (steps[-1] - steps[0]))


def steps_to_target(steps: Sequence[int], losses: Sequence[float], target: float) -> float:
    """Updates after which the loss was first seen at a target or below, inf where it never was.

    Args:
        steps: numbers of updates after which the loss was read.
        losses: loss after each of them.
        target: loss to reach.
    """
    return next(
        (float(step) for step, loss in zip(steps, losses, strict=False) if loss <= target),
        float("inf"),
    )


def speed_up(steps: Sequence[int], losses: Sequence[float], other: Sequence[float]) -> float:
    """How many times fewer updates a training needs to reach the loss at which another one ended.

    The speed-up is 0 where the training never reaches that loss. It is at most the number of
    intervals of the curve, and this is also what counts where the other training diverged.

    Args:
        steps: numbers of updates, from 0 to the horizon, after which the losses were read; empty
            where the training diverged.
        losses: loss after each of them.
        other: losses of the other training after the same updates; fewer where it ended early.
    """
    if len(steps) < 2:
        return 0.0
    ended = len(other) == len(steps) and np.isfinite(other[-1])
    end = other[-1] if ended else float("inf")
    return float(steps[-1] / max(steps_to_target(steps, losses, end), steps[1]))
