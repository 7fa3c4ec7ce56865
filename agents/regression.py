"""What the agents have in common that fit a network to what was seen in trainings."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn
from torch.nn.utils import skip_init

__all__ = ["BATCH", "falling_rates", "linear_layer", "regress"]

BATCH = 4096


def linear_layer(fan_in: int, fan_out: int, generator: torch.Generator) -> nn.Linear:
    """A linear layer whose weights are drawn as torch draws them, but from a generator."""
    module: nn.Linear = skip_init(nn.Linear, fan_in, fan_out)  # type: ignore[no-untyped-call]
    for tensor in module.parameters():
        nn.init.uniform_(tensor, -(fan_in**-0.5), fan_in**-0.5, generator=generator)
    return module


def falling_rates(learning_rate: float, steps: int, done: int, updates: int) -> list[float]:
    """Learning rates of the steps of an update; they fall linearly to 0 over all updates.

    Args:
        learning_rate: The first one.
        steps: Steps of an update.
        done: Updates made before.
        updates: Updates in all.
    """
    parts = [(done + step / steps) / max(1, updates) for step in range(steps)]
    return [learning_rate * max(0.0, 1.0 - part) for part in parts]


def regress(
    optimizer: torch.optim.Optimizer,
    loss_of: Callable[[Tensor], Tensor],
    rows: int,
    learning_rates: Iterable[float],
    generator: torch.Generator,
) -> None:
    """Lower a loss on BATCH random rows at each step.

    Args:
        optimizer: Optimizer of the network's parameters.
        loss_of: Mean loss of the network on rows of these indices (BATCH,).
        rows: Number of rows that there are.
        learning_rates: Learning rate of the optimizer at each step.
        generator: Generator from which the rows are drawn.
    """
    for lr in learning_rates:
        optimizer.param_groups[0]["lr"] = lr
        loss = loss_of(torch.randint(rows, (BATCH,), generator=generator))
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
