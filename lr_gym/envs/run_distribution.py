"""What each run of an environment draws for itself: learning rate, masks, held-out examples."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import torch
from torch import Tensor

from lr_gym.rng import Stream, uniform
from lr_gym.types import check_number, numbers_like

__all__ = ["INITIAL_LR", "MONITORED", "RunDistribution", "monitored"]

INITIAL_LR = (3e-5, 1e-1)
MONITORED = (100, 5000)  # a run is shown the loss on so many examples of the monitor split


@dataclasses.dataclass(frozen=True)
class RunDistribution:
    """What each run draws for itself.

    Attributes:
        initial_lr: range of the initial learning rate, log-uniform.
        mask_loss: share of the runs whose observation hides the loss.
        mask_progress: share of the runs whose observation hides progress and horizon.
        mask_passes: share of the runs whose observation hides the passes over the data.
        mask_monitor: share of the runs that are never shown the held-out loss.

    Raises:
        ValueError: for a field out of range, naming it.
    """

    initial_lr: tuple[float, float]
    mask_loss: float
    mask_progress: float
    mask_passes: float
    mask_monitor: float = 0.0

    def __post_init__(self) -> None:
        """Check every field."""
        given = self.initial_lr
        if not isinstance(given, Sequence) or len(given) != 2:
            raise ValueError(f"initial_lr must be (low, high); got {given!r}")
        low, high = (check_number("initial_lr", lr, 0.0) for lr in given)
        if not 0.0 < low <= high:
            raise ValueError(f"initial_lr must be (low, high) with 0 < low <= high; got {given!r}")
        object.__setattr__(self, "initial_lr", (low, high))
        for name in ("mask_loss", "mask_progress", "mask_passes", "mask_monitor"):
            object.__setattr__(self, name, check_number(name, getattr(self, name), 0.0, 1.0))

    def lr(self, run_seed: Tensor) -> Tensor:
        """Initial learning rate of each run: (B, 1) float64 for seeds (B,)."""
        low, high = (math.log(bound) for bound in self.initial_lr)
        place = uniform(run_seed, Stream.INITIAL_LR, 0, 1, dtype=torch.float64)
        return torch.exp(low + (high - low) * place)

    def known(self, run_seed: Tensor, dtype: torch.dtype) -> tuple[Tensor, ...]:
        """What is shown of runs with seeds (B,), 1 or 0.

        Returns:
            (B,) each for loss, progress, passes and held-out loss.
        """
        draw = uniform(run_seed, Stream.MASK, 0, 4, dtype=torch.float64)
        masks = [self.mask_loss, self.mask_progress, self.mask_passes, self.mask_monitor]
        shares = numbers_like(masks, draw)
        return tuple(column.clone() for column in (draw >= shares).to(dtype).unbind(1))


def monitored(run_seed: Tensor, examples: int) -> Tensor:
    """Which examples of the monitor split each run is shown the loss on.

    Small held-out sets are noisy, and users have small and large ones. So a run draws how many
    there are, log-uniformly within MONITORED as far as the split allows, and where they begin; from
    there they follow each other, from the last example on to the first.

    Args:
        run_seed: (B,) int64.
        examples: number of examples of the split, n.

    Returns:
        (B, n) bool.
    """
    low, high = (min(bound, examples) for bound in MONITORED)
    size, start = uniform(run_seed, Stream.MONITOR, 0, 2, dtype=torch.float64).unbind(1)
    count = torch.exp(math.log(low) + math.log(high / low) * size).round()
    place = torch.arange(examples, device=run_seed.device) - (start * examples).long().unsqueeze(1)
    return place % examples < count.unsqueeze(1)
