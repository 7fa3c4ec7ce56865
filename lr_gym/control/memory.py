"""What a controller remembers of each training from decision to decision."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from lr_gym.types import LayerStats

__all__ = ["Memory", "empty_memory", "log", "remember"]

TINY = 1e-20  # keeps logarithms finite; far below any rms of a training that is alive
SHORT = 0.5  # weight of the newest decision in the short running mean
LONG = 0.1  # weight of the newest decision in the long running mean
SLOW = 0.02  # weight of the newest decision in the slow running mean


class Memory(NamedTuple):
    """Running figures of B trainings; only `remember` changes them.

    Attributes:
        loss_seen: (B,) 1 once a loss was given, else 0.
        initial_loss: (B,) the first loss that was given.
        last_loss: (B,) mean loss of the interval before this decision.
        loss_change: (B,) log of `last_loss` over the mean loss of the interval before it.
        short_loss: (B,) running mean of the log loss, in which the newest value weighs SHORT.
        long_loss: (B,) running mean of the log loss, in which the newest value weighs LONG.
        slow_loss: (B,) running mean of the log loss, in which the newest value weighs SLOW.
        change_size: (B,) running mean of the size of `loss_change`; the newest one weighs LONG.
        surprise: (B,) `loss_change` over `change_size` as it was before; 0 for the first change.
        initial_param_rms: (B, L) rms of the parameters when it was first above 0.
        log_grad: (B, L) running mean of the log of the gradient's rms; the newest weighs LONG.
    """

    loss_seen: Tensor
    initial_loss: Tensor
    last_loss: Tensor
    loss_change: Tensor
    short_loss: Tensor
    long_loss: Tensor
    slow_loss: Tensor
    change_size: Tensor
    surprise: Tensor
    initial_param_rms: Tensor
    log_grad: Tensor


def log(x: Tensor) -> Tensor:
    """Natural logarithm that stays finite at 0."""
    return torch.log(x + TINY)


def empty_memory(runs: int, layers: int, like: Tensor) -> Memory:
    """The memory before the first decision.

    Args:
        runs: B.
        layers: L.
        like: a tensor whose device and dtype the memory gets.
    """
    per_run = (like.new_zeros(runs) for _ in range(9))
    per_layer = (like.new_zeros(runs, layers) for _ in range(2))
    return Memory(*per_run, *per_layer)


def remember(memory: Memory, stats: LayerStats, mean_loss: Tensor) -> Memory:
    """Update the memory at a decision.

    Args:
        memory: the memory after the last decision.
        stats: statistics at this decision.
        mean_loss: (B,) mean loss since the last decision, NaN where none was given.

    Returns:
        The new memory. What it holds of losses stays as it was in runs without a new loss.
    """
    log_grad = log(stats.grad_rms)
    new_layer = memory.initial_param_rms == 0
    known = torch.isfinite(mean_loss)
    first_loss = known & (memory.loss_seen == 0)
    loss = torch.where(known, mean_loss, memory.last_loss)
    log_loss = log(loss.clamp_min(0.0))
    last_log_loss = log(memory.last_loss.clamp_min(0.0))

    def running(mean: Tensor, weight: float) -> Tensor:
        moved = torch.where(first_loss, log_loss, torch.lerp(mean, log_loss, weight))
        return torch.where(known, moved, mean)

    change = torch.where(known & ~first_loss, log_loss - last_log_loss, torch.zeros_like(loss))
    size = change.abs()
    first_change = memory.change_size == 0
    mean_size = torch.where(first_change, size, torch.lerp(memory.change_size, size, LONG))
    surprise = change / torch.where(first_change, 1.0, memory.change_size)
    surprise = torch.where(first_change, 0.0, surprise)
    mean_log_grad = torch.lerp(memory.log_grad, log_grad, LONG)
    return Memory(
        loss_seen=torch.where(known, torch.ones_like(loss), memory.loss_seen),
        initial_loss=torch.where(first_loss, loss, memory.initial_loss),
        last_loss=loss,
        loss_change=change,
        short_loss=running(memory.short_loss, SHORT),
        long_loss=running(memory.long_loss, LONG),
        slow_loss=running(memory.slow_loss, SLOW),
        change_size=torch.where(known, mean_size, memory.change_size),
        surprise=surprise,
        initial_param_rms=torch.where(new_layer, stats.param_rms, memory.initial_param_rms),
        log_grad=torch.where(new_layer, log_grad, mean_log_grad),
    )
