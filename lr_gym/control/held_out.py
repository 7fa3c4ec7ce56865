"""What a controller remembers of the held-out loss of each training.

A held-out loss is given now and then, and shown at the next decision. Losses that are given between
two decisions count as one, their mean. All that is kept is scale-free except `first`, whose sign
alone is used.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from lr_gym.control.memory import LONG, SHORT, log

__all__ = [
    "HeldOut",
    "add_held_out",
    "emptied",
    "held_out_known",
    "no_held_out",
    "remember_held_out",
]


class HeldOut(NamedTuple):
    """Held-out losses of B trainings, (B,) each.

    Attributes:
        loss_sum: sum of the losses since the last decision.
        loss_count: number of these losses.
        seen: 1 once a decision has found a loss, else 0.
        first: the first loss that a decision has found.
        short: running mean of the log loss, in which the newest value weighs SHORT.
        long: running mean of the log loss, in which the newest value weighs LONG.
        best: the lowest value of `short` so far.
        stall: decisions since `short` was at its lowest.
        variance: running mean of the squared distance of the log loss from `short` as it was
            before; the newest value weighs LONG.
    """

    loss_sum: Tensor
    loss_count: Tensor
    seen: Tensor
    first: Tensor
    short: Tensor
    long: Tensor
    best: Tensor
    stall: Tensor
    variance: Tensor


def no_held_out(runs: int, like: Tensor) -> HeldOut:
    """What is remembered before the first loss.

    Args:
        runs: B.
        like: a tensor whose device and dtype the result gets.
    """
    return HeldOut(*(like.new_zeros(runs) for _ in HeldOut._fields))


def add_held_out(held_out: HeldOut, loss: Tensor) -> HeldOut:
    """Take note of a loss (B,) of each training; one that is not finite is left out."""
    known = torch.isfinite(loss)
    return held_out._replace(
        loss_sum=held_out.loss_sum + torch.where(known, loss, 0.0),
        loss_count=held_out.loss_count + known,
    )


def emptied(held_out: HeldOut) -> HeldOut:
    """The same, with nothing given since the last decision."""
    return held_out._replace(
        loss_sum=torch.zeros_like(held_out.loss_sum),
        loss_count=torch.zeros_like(held_out.loss_count),
    )


def held_out_known(held_out: HeldOut) -> Tensor:
    """(B,) 1 where a loss was given whose logarithm says something, else 0.

    The features compare logarithms, so a first loss that is not above 0 counts as none.
    """
    return held_out.seen * (held_out.first > 0)


def remember_held_out(held_out: HeldOut) -> HeldOut:
    """Update at a decision; of trainings without a new loss only `stall` changes."""
    known = held_out.loss_count > 0
    loss = held_out.loss_sum / held_out.loss_count  # NaN where none was given
    first = known & (held_out.seen == 0)
    log_loss = log(torch.where(known, loss, 1.0).clamp_min(0.0))
    off = log_loss - held_out.short  # what the recent losses did not lead to expect

    def running(mean: Tensor, value: Tensor, weight: float, start: Tensor) -> Tensor:
        moved = torch.where(first, start, torch.lerp(mean, value, weight))
        return torch.where(known, moved, mean)

    short = running(held_out.short, log_loss, SHORT, log_loss)
    better = known & (first | (short < held_out.best))
    return emptied(
        held_out._replace(
            seen=torch.where(known, 1.0, held_out.seen),
            first=torch.where(first, loss, held_out.first),
            short=short,
            long=running(held_out.long, log_loss, LONG, log_loss),
            best=torch.where(better, short, held_out.best),
            stall=torch.where(better, 0.0, held_out.stall + held_out.seen),
            variance=running(held_out.variance, off.square(), LONG, torch.zeros_like(off)),
        )
    )
