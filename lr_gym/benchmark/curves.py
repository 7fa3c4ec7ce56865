"""Figures of one training's curve: the area under it, and when it reaches a target."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

__all__ = ["area_under_curve", "steps_to_target"]


def area_under_curve(steps: Sequence[int], losses: Sequence[float]) -> float:
    """Mean loss along the training, by trapezoids (nats where the loss is); inf where it diverged.

    Args:
        steps: updates done, from 0 to the horizon.
        losses: at each of them; fewer where the training ended early.
    """
    if len(losses) < len(steps) or not steps or not np.isfinite(losses).all() or steps[-1] == steps[0]:
        return float("inf")
    return float(np.trapezoid(losses, steps) / (steps[-1] - steps[0]))


def steps_to_target(steps: Sequence[int], losses: Sequence[float], target: float) -> float:
    """Updates after which the loss was first seen at the target or below, inf where it never was.

    Args:
        steps: updates done where the loss was read.
        losses: at each of them.
        target: loss.
    """
    return next((float(step) for step, loss in zip(steps, losses, strict=False) if loss <= target), float("inf"))
