"""Member: one network of several that learn from the same trials when to end a training."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from agents.endings.stopping import expected_regret
from agents.endings.trials import EndingConfig, Trials
from agents.tanh_network import tanh_network

__all__ = ["MEMBER_SEED", "Member", "mean_logit"]

ROWS = 256  # trainings of one step of a network
MEMBER_SEED = 1_000_003  # so far apart that members of two learners never have the same seed


class Member:
    """A network in training, with its optimizer and random minibatches of its own.

    Attributes:
        network: gives the log odds of ending a training, (..., 1), from observations (..., F).
    """

    def __init__(self, features: int, config: EndingConfig, seed: int) -> None:
        """Start with log odds of 0.

        Args:
            features: F.
            config: Hyperparameters.
            seed: Seed of the initial weights and of the minibatches.
        """
        self.network = tanh_network([features, *config.hidden, 1], seed)
        self._config = config
        self._optimizer = torch.optim.AdamW(
            self.network.parameters(), config.learning_rate, weight_decay=config.weight_decay
        )
        self._generator = torch.Generator().manual_seed(seed)

    def learn(self, seen: Trials, learning_rates: Sequence[float]) -> None:
        """Lower the expected cost on random trainings, one step at each learning rate."""
        regret = seen.regret(self._config.price, self._config.worst)
        regret = regret + self._config.aversion * regret.square()
        for lr in learning_rates:
            self._optimizer.param_groups[0]["lr"] = lr
            rows = torch.randint(len(regret), (ROWS,), generator=self._generator)
            logit: Tensor = self.network(seen.observation[rows].float()).squeeze(-1)
            loss = expected_regret(logit, seen.known[rows], regret[rows]).mean()
            self._optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            self._optimizer.step()

    def state_dict(self) -> dict[str, Any]:
        """Everything that the next step depends on."""
        return {
            "network": {name: value.clone() for name, value in self.network.state_dict().items()},
            "optimizer": self._optimizer.state_dict(),
            "generator": self._generator.get_state(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue exactly where `state_dict` was taken."""
        self.network.load_state_dict(state["network"])
        self._optimizer.load_state_dict(state["optimizer"])
        self._generator.set_state(state["generator"])


@torch.no_grad()
def mean_logit(members: Sequence[Member], observation: Tensor) -> Tensor:
    """Mean log odds (n, D) of several networks on observations (n, D, F)."""
    shown = observation.float()
    return torch.stack([member.network(shown).squeeze(-1) for member in members]).mean(0)
