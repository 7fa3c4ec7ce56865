"""Averaged weights, which do for a training of unknown length what the end of a schedule does where it is known.

Polynomial-decay averaging (Shamir & Zhang 2013, section 4): after snapshot t = 1, 2, ... of the weights w

    average += (p + 1) / (p + t) (w - average)

which is the mean of all snapshots for p = 0 and that of about the last 1 / (p + 1) of them, whenever one asks, for
larger p. It is the weights that are trained; the average is only looked at.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from lr_gym.updates.rules import stretch

__all__ = ["averaged", "leave_average_", "show_average_", "snapshot_", "snapshot_weight"]


def snapshot_weight(power: float, count: Any) -> Any:
    """What snapshot `count`, from 1, a number or an array, weighs in the average of p = `power`."""
    return (power + 1.0) / (power + count)


def averaged(
    averages: Sequence[Tensor], values: Sequence[Tensor], weight: Tensor
) -> tuple[Tensor, ...]:
    """Averages (B, ...) joined by values (B, ...), which weigh `weight` (B,).

    Of integers the values.
    """
    return tuple(
        torch.lerp(average, value, stretch(weight, value))
        if value.is_floating_point()
        else value.clone()
        for average, value in zip(averages, values, strict=True)
    )


def snapshot_(state: dict[str, Any], param: Tensor, weight: float) -> None:
    """Let a parameter join the average in its optimizer's state, which is kept in float32 at least."""
    dtype = torch.promote_types(param.dtype, torch.float32)
    if "average" not in state:
        state["average"] = param.to(dtype, copy=True)
    else:
        state["average"].lerp_(param.to(dtype), weight)


def show_average_(state: dict[str, Any], param: Tensor) -> None:
    """Put the average in the parameter's place, if there is one yet."""
    if "average" in state and "point" not in state:
        state["point"] = param.clone()
        param.copy_(state["average"])


def leave_average_(state: dict[str, Any], param: Tensor) -> None:
    """Put the parameter back to where it is trained, bit for bit."""
    if "point" in state:
        param.copy_(state.pop("point"))
