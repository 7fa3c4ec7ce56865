"""Averages of the weights along a training.

Where the length of a training is unknown, an average does what the end of a decaying schedule does
where it is known. Polynomial-decay averaging (Shamir & Zhang 2013, section 4): after snapshot
t = 1, 2, ... of the weights w

    average += (p + 1) / (p + t) (w - average)

For p = 0 this is the mean of all snapshots, for larger p about that of the last 1 / (p + 1) of
them, at any time. Gradients are taken at the weights themselves; the average is only evaluated.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from lr_gym.updates.rule import stretch

__all__ = ["averaged", "leave_average_", "show_average_", "snapshot_", "snapshot_weight"]


def snapshot_weight(power: float, count: Any) -> Any:
    """Weight with which a snapshot joins the average.

    Args:
        power: p of the formula above, at least 0.
        count: number t of the snapshot, from 1; an int or an array.

    Returns:
        A float or an array.
    """
    return (power + 1.0) / (power + count)


def averaged(
    averages: Sequence[Tensor], values: Sequence[Tensor], weight: Tensor
) -> tuple[Tensor, ...]:
    """Averages after one more snapshot.

    Args:
        averages: per tensor (B, ...) the average so far.
        values: per tensor (B, ...) the snapshot. Integers, such as counters, replace the average.
        weight: (B,) weight of the snapshot.

    Returns:
        New tensors, per tensor (B, ...).
    """
    return tuple(
        torch.lerp(average, value, stretch(weight, value))
        if value.is_floating_point()
        else value.clone()
        for average, value in zip(averages, values, strict=True)
    )


def snapshot_(state: dict[str, Any], param: Tensor, weight: float) -> None:
    """Let a parameter join the average in its optimizer's state, kept in float32 or wider."""
    dtype = torch.promote_types(param.dtype, torch.float32)
    if "average" not in state:
        state["average"] = param.to(dtype, copy=True)
    else:
        state["average"].lerp_(param.to(dtype), weight)


def show_average_(state: dict[str, Any], param: Tensor) -> None:
    """Put the average in the parameter's place, if there is one, and keep the weights aside."""
    if "average" in state and "point" not in state:
        state["point"] = param.clone()
        param.copy_(state["average"])


def leave_average_(state: dict[str, Any], param: Tensor) -> None:
    """Put the weights that are trained back in their place, bit for bit."""
    if "point" in state:
        param.copy_(state.pop("point"))
