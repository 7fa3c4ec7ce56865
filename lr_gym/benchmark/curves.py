"""Figures of one training's curve.

The area under it, when it reaches a target, and how much sooner than another.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy.integrate import trapezoid

__all__ = ["area_under_curve", "speed_up", "steps_to_target"]


def area_under_curve(steps: Sequence[int], losses: Sequence[float]) -> float:
    """Mean loss along the training, by trapezoids (nats where the loss is); inf where it diverged.

    Args:
        steps: updates done, from 0 to the horizon.
        losses: at each of them; fewer where the training ended early.
    """
    if (
        len(losses) < len(steps)
        or not steps
        or not np.isfinite(losses).all()
        or steps[-1] == steps[0]
    ):
        return float("inf")
    return float(trapezoid(losses, steps) / (steps[-1] - steps[0]))


def steps_to_target(steps: Sequence[int], losses: Sequence[float], target: float) -> float:
    """Updates after which the loss was first seen at the target or below, inf where it never was.

    Args:
        steps: updates done where the loss was read.
        losses: at each of them.
        target: loss.
    """
    return next(
        (float(step) for step, loss in zip(steps, losses, strict=False) if loss <= target),
        float("inf"),
    )


def speed_up(steps: Sequence[int], losses: Sequence[float], other: Sequence[float]) -> float:
    """How many times fewer updates it takes to first come down to the loss at which another training ended.

    0 where it never does; at most the number of intervals of the curve, which is what is counted where the other
    diverged.

    Args:
        steps: updates done where the losses were read, from 0 to the horizon; [] where the training diverged.
        losses: at each of them.
        other: the other training's at the same steps; fewer where it ended early.
    """
    if len(steps) < 2:
        return 0.0
    end = other[-1] if len(other) == len(steps) and np.isfinite(other[-1]) else float("inf")
    return float(steps[-1] / max(steps_to_target(steps, losses, end), steps[1]))
