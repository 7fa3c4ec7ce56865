"""Learning rates of parameter groups: what the user wants, and what the base schedule makes of it.

A group has `lr`, which belongs to the user and to schedulers, and two keys of ours:

    start_lr    the lr that the group began with; the policy starts from the largest of them
    peak_lr     the largest lr that the group has had at a step

A warmup raises `lr` and multiplies the policy's rates. A decay lowers `lr` below its peak. Then the
base schedule of the policy does not decay on top of it: the lower of both decays counts.

`lr` is therefore not what is applied; `applied_lrs` is.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from lr_gym.optim.slots import Slot
from lr_gym.types import numbers_like

__all__ = [
    "PEAK_LR",
    "START_LR",
    "applied_lrs",
    "note_peak",
    "note_start",
    "reference_lr",
    "scheduled_lr",
]

START_LR = "start_lr"
PEAK_LR = "peak_lr"


def note_start(group: dict[str, Any]) -> None:
    """Remember the lr that a group begins with."""
    # a scheduler, which may have changed lr before the first step, notes the start as initial_lr
    group.setdefault(START_LR, float(group.get("initial_lr", group["lr"])))


def note_peak(group: dict[str, Any]) -> None:
    """Remember the largest lr that a group has had at a step.

    The lr before the first step does not count: a scheduler with a warmup lowers it at once.
    """
    lr = group["lr"]
    peak = group.setdefault(PEAK_LR, lr)
    if isinstance(lr, Tensor):
        group[PEAK_LR] = torch.maximum(torch.as_tensor(peak, dtype=lr.dtype, device=lr.device), lr)
    elif lr > peak:
        group[PEAK_LR] = lr


def reference_lr(groups: Iterable[dict[str, Any]]) -> float:
    """The lr that the policy starts from: the largest that a group began with.

    The policy moves all groups together, so ratios between them stay as the user wants them.
    """
    return max(float(group[START_LR]) for group in groups)


def scheduled_lr(group: dict[str, Any], factor: float) -> float | Tensor:
    """The lr of a group under a base schedule.

    Args:
        group: a parameter group.
        factor: factor of the base schedule now, within [0, 1].
    """
    lr: float | Tensor = group["lr"]
    peak: float | Tensor = group.get(PEAK_LR, lr)
    if isinstance(lr, Tensor):
        peak = torch.as_tensor(peak, dtype=lr.dtype, device=lr.device)
        return torch.minimum(lr, torch.maximum(peak, lr) * factor)
    return min(lr, max(peak, lr) * factor)


def applied_lrs(
    groups: Sequence[dict[str, Any]],
    slots: Iterable[Slot],
    multiplier: Tensor,
    scheduled: Mapping[int, float | Tensor],
) -> list[float]:
    """One number for each group, which stands for the learning rates of its layers.

    The number is the geometric mean over the layers of the group, weighted by their numbers of
    trained parameters. It is read back from the device.

    Args:
        groups: parameter groups of the optimizer.
        slots: every parameter in its place.
        multiplier: (L,) the policy's factors of the learning rate.
        scheduled: the lr of each group under the base schedule, by the group's id.
    """
    row_of = {id(group): row for row, group in enumerate(groups)}
    sizes = [[0.0] * len(multiplier) for _ in groups]  # (G, L)
    for slot in slots:
        if slot.param.requires_grad:
            sizes[row_of[id(slot.group)]][slot.layer] += slot.param.numel()
    weights = [[size / max(sum(row), 1.0) for size in row] for row in sizes]
    # a weight of 0 times the logarithm of 0 would be NaN
    logs = multiplier.clamp_min(torch.finfo(multiplier.dtype).tiny).log()
    means = (numbers_like(weights, multiplier) @ logs).tolist()  # (G,)
    return [
        float(scheduled[id(group)]) * math.exp(mean)
        for group, mean in zip(groups, means, strict=True)
    ]
