"""SCHEDULERS: the learning-rate schedules of the baselines, torch's own where there is one."""

from __future__ import annotations

from collections.abc import Callable

from torch.optim import Optimizer
from torch.optim.lr_scheduler import (
    CosineAnnealingLR,
    CosineAnnealingWarmRestarts,
    LambdaLR,
    LinearLR,
    LRScheduler,
    OneCycleLR,
    ReduceLROnPlateau,
)

from lr_gym.updates.schedules import base_schedule

__all__ = ["SCHEDULERS", "advance"]


def _wsd(optimizer: Optimizer, lr: float, horizon: int) -> LRScheduler:
    schedule = base_schedule("wsd")
    return LambdaLR(optimizer, lambda step: float(schedule(step / horizon)))


# name -> function of (optimizer, peak learning rate, inner steps of the training)
SCHEDULERS: dict[str, Callable[[Optimizer, float, int], LRScheduler | None]] = {
    "constant": lambda optimizer, lr, horizon: None,
    "cosine": lambda optimizer, lr, horizon: CosineAnnealingLR(optimizer, T_max=horizon),
    "linear": lambda optimizer, lr, horizon: LinearLR(optimizer, 1.0, 0.0, total_iters=horizon),
    "wsd": _wsd,
    "one-cycle": lambda optimizer, lr, horizon: OneCycleLR(
        optimizer, max_lr=lr, total_steps=horizon
    ),
    # SGDR (Loshchilov & Hutter 2017) with ten equal cycles
    "warm-restarts": lambda optimizer, lr, horizon: CosineAnnealingWarmRestarts(
        optimizer, T_0=max(1, horizon // 10)
    ),
    "plateau": lambda optimizer, lr, horizon: ReduceLROnPlateau(optimizer, factor=0.5, patience=2),
}


def advance(scheduler: LRScheduler | None, losses: list[float], point: bool) -> None:
    """Step a scheduler.

    A plateau scheduler steps only at points of the curve, with the mean training loss since the
    last one.

    Args:
        scheduler: the scheduler, None for a constant learning rate.
        losses: training losses since the last point; emptied at a point.
        point: whether this step is a point of the curve.
    """
    if isinstance(scheduler, ReduceLROnPlateau):
        if point:
            scheduler.step(sum(losses) / len(losses))
    elif scheduler is not None:
        scheduler.step()
    if point:
        losses.clear()
