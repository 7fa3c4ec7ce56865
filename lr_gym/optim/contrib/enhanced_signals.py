"""What EnhancedSGD watches while it trains: loss, gradient norm, entropy and variance."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from lr_gym.optim.contrib.enhanced_options import EnhancedOptions
from lr_gym.optim.contrib.running_moments import (
    RunningMoments,
    clip_factor,
    compared,
    corrected_for_spike,
    grown,
    running_moments,
)

__all__ = ["Signals"]

OF_MODEL = ("loss", "norm")  # moments of one number for the model
OF_TENSORS = ("entropy", "variance")  # moments of a number for each tensor


class Signals:
    """Running moments of the signals, and what clipping and spike detection make of them.

    Attributes:
        moments: moments of "loss" and "norm", (), and of each tensor's "entropy" and "variance".
        correction: () factor on lr and momentum, below 1 after a loss spike.
        clip: () factor on the gradients at the last step, None without clipping.
    """

    def __init__(self, options: EnhancedOptions, device: torch.device, tensors: int) -> None:
        """Start with empty moments.

        Args:
            options: what the optimizer was made with.
            device: device of all that is watched.
            tensors: number of tensors of the model, which may grow.
        """
        self._options = options
        self.moments = {name: running_moments((), device) for name in OF_MODEL}
        self.moments |= {name: running_moments((tensors,), device) for name in OF_TENSORS}
        self.correction = torch.ones((), device=device)
        self.clip: Tensor | None = None
        self._sum = torch.zeros((), device=device)  # of what is to fall, since the last decision
        self._count = 0

    def compare(self, name: str, values: Tensor, places: Sequence[int]) -> Tensor:
        """The averages (T,) until now of what has the `values` (T,) now; these join them.

        Args:
            name: "entropy" or "variance".
            values: (T,) values of T tensors.
            places: index of each tensor in the model.
        """
        rows = torch.tensor(places).to(values.device, non_blocking=True)
        rate = self._options.smoothing_factor
        count = len(self.moments[name].mean)
        means, self.moments[name] = compared(self.moments[name], values, rows, count, rate)
        return means

    def clipped(self, norm: Tensor) -> Tensor:
        """Factor () on all gradients, from their norm ()."""
        rate = self._options.smoothing_factor
        self.clip, self.moments["norm"] = clip_factor(self.moments["norm"], norm, rate)
        return self.clip

    def watch_loss(self, loss: Tensor) -> None:
        """Lower `correction` if the loss () spikes, else let it recover."""
        self.correction, self.moments["loss"] = corrected_for_spike(
            self.correction,
            self.moments["loss"],
            loss,
            factor=self._options.loss_correction_factor,
            rate=self._options.smoothing_factor,
        )

    def add(self, signal: Tensor) -> None:
        """Count what is to fall, a loss or a norm (), for the next decision."""
        self._sum = self._sum + signal
        self._count += 1

    def grow(self, tensors: int) -> None:
        """Add rows up to a number of tensors."""
        for name in OF_TENSORS:
            self.moments[name] = grown(self.moments[name], tensors)

    def take_mean(self) -> Tensor:
        """Mean () of what was added since the last call."""
        mean = self._sum / self._count
        self._sum = torch.zeros_like(self._sum)
        self._count = 0
        return mean

    def tensors(self) -> dict[str, Tensor]:
        """Everything that the next steps depend on, on the device."""
        count = torch.full_like(self._sum, self._count)
        of_model = [x for name in OF_MODEL for x in self.moments[name]]
        of_tensors = [x for name in OF_TENSORS for x in self.moments[name]]
        return {
            "signals": torch.stack([self.correction, self._sum, count, *of_model]),
            "distribution": torch.stack(of_tensors, dim=1),  # (N, 6)
        }

    def load_tensors(self, tensors: dict[str, Tensor]) -> None:
        """Restore `tensors`."""
        device = self._sum.device
        numbers = tensors["signals"].to(device, copy=True).unbind()
        self.correction = numbers[0]
        self._sum = numbers[1]
        self._count = int(numbers[2])
        columns = tensors["distribution"].to(device, copy=True).unbind(1)
        for i, name in enumerate(OF_MODEL):
            self.moments[name] = RunningMoments(*numbers[3 + 3 * i : 6 + 3 * i])
        for i, name in enumerate(OF_TENSORS):
            self.moments[name] = RunningMoments(*columns[3 * i : 3 + 3 * i])
