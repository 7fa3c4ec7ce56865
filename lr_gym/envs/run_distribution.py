"""What each run of an environment draws for itself: initial learning rate and masks."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import torch
from torch import Tensor

from lr_gym.rng import Stream, uniform
from lr_gym.types import check_number, numbers_like

__all__ = ["INITIAL_LR", "RunDistribution"]

INITIAL_LR = (3e-5, 1e-1)


@dataclasses.dataclass(frozen=True)
class RunDistribution:
    """What each run draws for itself.

    Attributes:
        initial_lr: range of the initial learning rate, log-uniform.
        mask_loss: share of the runs whose observation hides the loss.
        mask_progress: share of the runs whose observation hides progress and horizon.
        mask_passes: share of the runs whose observation hides the passes over the data.

    Raises:
        ValueError: for a field out of range, naming it.
    """

    initial_lr: tuple[float, float]
    mask_loss: float
    mask_progress: float
    mask_passes: float

    def __post_init__(self) -> None:
        """Check every field."""
        given = self.initial_lr
        if not isinstance(given, Sequence) or len(given) != 2:
            raise ValueError(f"initial_lr must be (low, high); got {given!r}")
        low, high = (check_number("initial_lr", lr, 0.0) for lr in given)
        if not 0.0 < low <= high:
            raise ValueError(f"initial_lr must be (low, high) with 0 < low <= high; got {given!r}")
        object.__setattr__(self, "initial_lr", (low, high))
        for name in ("mask_loss", "mask_progress", "mask_passes"):
            object.__setattr__(self, name, check_number(name, getattr(self, name), 0.0, 1.0))

    def lr(self, run_seed: Tensor) -> Tensor:
        """Initial learning rate of each run: (B, 1) float64 for seeds (B,)."""
        low, high = (math.log(bound) for bound in self.initial_lr)
        place = uniform(run_seed, Stream.INITIAL_LR, 0, 1, dtype=torch.float64)
        return torch.exp(low + (high - low) * place)

    def known(self, run_seed: Tensor, dtype: torch.dtype) -> tuple[Tensor, ...]:
        """What is shown of runs with seeds (B,): loss, progress and passes, (B,) each, 1 or 0."""
        draw = uniform(run_seed, Stream.MASK, 0, 3, dtype=torch.float64)
        shares = numbers_like([self.mask_loss, self.mask_progress, self.mask_passes], draw)
        return tuple(column.clone() for column in (draw >= shares).to(dtype).unbind(1))
