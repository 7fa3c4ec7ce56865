"""What EnhancedSGD watches while it trains: loss, gradient norm, entropy and variance."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from lr_gym.optim.contrib.enhanced_options import EnhancedOptions
from lr_gym.optim.contrib.running_moments import (
    RunningMoments,
    clip_factor,
    compared,
    corrected_for_spike,
    running_moments,
)

__all__ = ["Signals"]


class Signals:
    """Running moments of the signals, and what clipping and spike detection make of them.

    Attributes:
        moments: moments of "loss" and "norm", (), and of each tensor's "entropy" and "variance".
        correction: () factor on lr and momentum, below 1 after a loss spike.
        clip: () factor on the gradients at the last step, None without clipping.
    """

    def __init__(self, options: EnhancedOptions, device: torch.device) -> None:
        """Start with empty moments on a device."""
        self._options = options
        self.moments = {
            "loss": running_moments((), device),
            "norm": running_moments((), device),
            "entropy": running_moments((0,), device),  # grows with the number of tensors
            "variance": running_moments((0,), device),
        }
        self.correction = torch.ones((), device=device)
        self.clip: Tensor | None = None
        self._sum = torch.zeros((), device=device)  # of what is to fall, since the last decision
        self._count = 0

    def compare(self, name: str, values: Tensor, places: Sequence[int], count: int) -> Tensor:
        """The averages (T,) until now of what has the `values` (T,) now; these join them.

        Args:
            name: "entropy" or "variance".
            values: (T,) values of T tensors.
            places: index of each tensor in the model.
            count: number of tensors of the model.
        """
        rows = torch.tensor(places).to(values.device, non_blocking=True)
        rate = self._options.smoothing_factor
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

    def take_mean(self) -> Tensor:
        """Mean () of what was added since the last call."""
        mean = self._sum / self._count
        self._sum = torch.zeros_like(self._sum)
        self._count = 0
        return mean

    def state_dict(self) -> dict[str, Any]:
        """Everything that the next steps depend on."""
        return {
            "watched": {name: moments._asdict() for name, moments in self.moments.items()},
            "correction": self.correction,
            "signal": self._sum,
            "signal_count": self._count,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore `state_dict`; missing entries keep their present value."""
        device = self._sum.device
        for name, moments in state.get("watched", {}).items():
            copies = {k: v.to(device, copy=True) for k, v in moments.items()}
            self.moments[name] = RunningMoments(**copies)
        self.correction = state.get("correction", self.correction).to(device, copy=True)
        self._sum = state.get("signal", self._sum).to(device, copy=True)
        self._count = state.get("signal_count", self._count)
