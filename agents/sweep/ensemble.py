"""Several networks that learn from the same sweeps, and one network that says what they mean.

Sweeps cost nearly all of the time, and networks seconds. Networks with other initial weights, which
see other rows, err in other ways, and the mean of what they name errs less (bagging: Breiman 1996).
A policy is one network, so one is fitted to that mean (distillation: Hinton et al. 2015).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from agents.regression import BATCH
from agents.sweep.rate_network import RateNetwork, learn
from agents.sweep.sweeps import Sweeps

__all__ = ["Member", "distilled"]

STEPS = 1000  # of the fit to the mean
LEARNING_RATE = 3e-3


class Member:
    """A network in training, with its optimizer and its own choice of rows."""

    def __init__(
        self, widths: Sequence[int], log_rates: Tensor, seed: int, lr: float, weight_decay: float
    ) -> None:
        """Start with a network that names the middle of the sweep.

        Args:
            widths: Widths of the input and of the hidden layers.
            log_rates: (rates,) logarithms of the sweep's learning rates.
            seed: Seed of the initial weights and of the rows.
            lr: Learning rate of the network's AdamW.
            weight_decay: Weight decay of the network's AdamW.
        """
        self.network = RateNetwork(widths, log_rates, seed)
        self._log_rates = log_rates
        self._optimizer = torch.optim.AdamW(
            self.network.parameters(), lr, weight_decay=weight_decay
        )
        self._generator = torch.Generator().manual_seed(seed)

    def learn(self, seen: Sweeps, learning_rates: Sequence[float]) -> None:
        """Learn from sweeps, one step at each learning rate."""
        learn(self.network, self._optimizer, seen, self._log_rates, learning_rates, self._generator)

    def state_dict(self) -> dict[str, Any]:
        """Everything that the next step depends on."""
        linears = self.network.linears.state_dict()
        return {
            "linears": {name: tensor.clone() for name, tensor in linears.items()},
            "optimizer": self._optimizer.state_dict(),
            "generator": self._generator.get_state(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue exactly where `state_dict` was taken."""
        self.network.linears.load_state_dict(state["linears"])
        self._optimizer.load_state_dict(state["optimizer"])
        self._generator.set_state(state["generator"])


def distilled(networks: Sequence[RateNetwork], fitted: RateNetwork, observation: Tensor) -> None:
    """Fit one network to the mean of what several name, by squared error on known observations.

    Args:
        networks: The networks whose mean is wanted.
        fitted: The network that is fitted, in place.
        observation: (n, F - 1) what was known in sweeps.
    """
    generator = torch.Generator().manual_seed(0)
    optimizer = torch.optim.AdamW(fitted.parameters(), LEARNING_RATE, weight_decay=0.0)
    decay = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, total_iters=STEPS)
    for _ in range(STEPS):
        rows = torch.randint(len(observation), (BATCH,), generator=generator)
        shown = observation[rows].float()
        with torch.no_grad():
            wanted = torch.stack([network(shown) for network in networks]).mean(0)
        loss = (fitted(shown) - wanted).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        decay.step()
